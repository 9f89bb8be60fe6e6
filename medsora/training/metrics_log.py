"""What a run tells while it trains: metrics.jsonl and TensorBoard events.

metrics.jsonl has one JSON object a line with at least "stage" and "step". Resuming a stage at a step drops that
stage's later lines first, so a step never appears twice.
"""

import json
import math
import os
from pathlib import Path

from medsora.files import write_text

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends records of one stage to a run's metrics.jsonl and to TensorBoard."""

    def __init__(self, run: str | os.PathLike, stage: str, resumed_step: int):
        self.stage = stage
        self.path = Path(run) / METRICS_FILE
        kept = [r for r in read_metrics(run) if r["stage"] != stage or r["step"] <= resumed_step]
        write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))
        self._file = open(self.path, "a", encoding="utf-8")  # closed in close()
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(Path(run) / "tensorboard" / stage, purge_step=resumed_step + 1)

    def write(self, step: int, **values: float) -> None:
        """Adds one record; a number that is not finite is written as null, since JSON has none."""
        finite = {k: (v if not isinstance(v, float) or math.isfinite(v) else None) for k, v in values.items()}
        self._file.write(json.dumps({"stage": self.stage, "step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in finite.items():
            if isinstance(value, (int, float)):
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is buffered and closes both logs."""
        self._file.close()
        self._events.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def read_metrics(run: str | os.PathLike, stage: str | None = None) -> list[dict]:
    """The records of a run, in order, of one stage or of all; a last line cut short by a kill is left out."""
    path = Path(run) / METRICS_FILE
    if not path.is_file():
        return []
    records = []
    for line in path.read_text("utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "stage" in record and "step" in record:
            records.append(record)
    return [r for r in records if stage is None or r["stage"] == stage]
