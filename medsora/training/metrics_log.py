"""What a run tells while it trains: metrics.jsonl, TensorBoard events and loss curves.

metrics.jsonl has one JSON object a line with at least "stage" and "step". Resuming a stage at a step drops that
stage's later lines first, so a step never appears twice.
"""

import json
import math
import os
from pathlib import Path

from medsora.files import replacing, write_text

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


def draw_curves(records: list[dict], path: str | os.PathLike, title: str, names: list[str]) -> None:
    """Draws the named values of `records` over their steps as one PNG; names without a record are left out.

    Positive values get a logarithmic axis, one panel a name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = {n: [(r["step"], r[n]) for r in records if isinstance(r.get(n), (int, float))] for n in names}
    series = {n: points for n, points in series.items() if points}
    figure = Figure(figsize=(4.2 * max(len(series), 1), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for column, (name, points) in enumerate(series.items()):
        axes = figure.add_subplot(1, len(series), column + 1)
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, linewidth=1.2, marker="." if len(points) < 3 else None)
        axes.set_xlabel("step")
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
        if min(values) > 0 and max(values) > 3 * min(values):
            axes.set_yscale("log")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
