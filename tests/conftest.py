"""What every test run shares: deterministic hypothesis profiles and the way to `sampling`."""

import os
import signal
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

from sampling import FULL  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"

os.environ.pop("PYTEST_XDIST_WORKER", None)  # what the tests start is no worker of theirs; pytest-benchmark asks
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell; what the tests start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "sampled", max_examples=15, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "full", max_examples=300, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("full" if FULL else "sampled")
