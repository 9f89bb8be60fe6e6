"""Each operator against what a user could otherwise write, in one run: `pytest benchmarks/ --benchmark-only`."""

import pytest

from benchmarks.path_scan_cases import path_scan_cases
from benchmarks.playback import variants_of

PATH_SCAN = {case.slug: case for case in path_scan_cases()}


@pytest.mark.parametrize(("case", "variant"), variants_of(PATH_SCAN))
def test_path_scan(measure, case, variant):
    measure(PATH_SCAN[case], variant)
