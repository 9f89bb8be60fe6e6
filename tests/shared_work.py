"""What two processes do together in one go, for `test_processes.py`: python shared_work.py FOLDER.

Encodes a data set and samples videos; one process and several run the same lines.
"""

import json
import sys
from pathlib import Path

from medsora.errors import run_command
from medsora.prepare import main as prepare
from medsora.processes import joined_processes
from medsora.sample import main as sample

PREPARE = ("builtin:phantom:5", "--size", "32", "--num_frames", "8", "--windows_per_clip", "2", "--quiet")
SAMPLE = ("--num-videos", "5", "--steps", "2", "--batch-size", "2", "--seed", "3", "--device", "cpu")


def main(folder: Path) -> int:
    model, name = folder / "model", "together"
    with joined_processes() as processes:
        name = f"of-{processes.count}"
        data, samples = folder / f"data-{name}", folder / f"samples-{name}"
        prepare([*PREPARE, "--output", str(data), "--vae", str(model / "vae")])
        code = sample(["--model", str(model), *SAMPLE, "--output", str(samples)])
        found = {
            "shares": processes.gathered(processes.share(range(7))),
            "from_first": processes.from_first(lambda: processes.rank),
        }
        if processes.is_first:
            (folder / f"found-{name}.json").write_text(json.dumps(found))
    return code


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(Path(sys.argv[1]))))
