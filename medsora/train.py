"""`python -m medsora.train`: from recordings to a trained model, samples and a report, with one command."""

import logging
import os
import sys

from medsora.errors import run_command
from medsora.training.stopping import Interrupted, StopRequests


def main(arguments: list[str] | None = None) -> int:
    """Runs the command. Exit codes: 0 done, 1 diverged, 2 a bad option or data, 128 + n stopped by signal n."""
    from medsora.config import read_command_line

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    settings, dry_run = read_command_line(sys.argv[1:] if arguments is None else arguments)
    if dry_run:
        from medsora.training.dry_run import describe

        _say(describe(settings))
        return 0
    stops = StopRequests()
    with stops.listening():
        try:
            return _train(settings, stops)
        except Interrupted as stopped:
            saved = f"saved {stopped.saved}" if stopped.saved else "what is finished is kept"
            _say(f"Stopped: {saved}. The same command goes on from there.")
            return stopped.exit_code


def _train(settings, stops: StopRequests) -> int:
    from medsora.training.loop import TrainingDiverged
    from medsora.training.results import where_results_are
    from medsora.training.run import run_training

    try:
        folder = run_training(settings, stops, _say)
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _say(where_results_are(folder, settings))
    return 0


def _say(words: str) -> None:
    """Prints at once, on the first process of several only."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(words, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
