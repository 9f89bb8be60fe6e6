"""Each operator against what a user could otherwise write, in one run: `pytest benchmarks/ --benchmark-only`."""

import pytest

from benchmarks.cases.path_scan import path_scan_cases
from benchmarks.cases.reorder import reorder_cases
from benchmarks.cases.spectral import focal_loss_cases, spectral_filter_cases
from benchmarks.cases.ssd_scan import ssd_scan_cases
from benchmarks.harness.playback import variants_of

PATH_SCAN = {case.slug: case for case in path_scan_cases()}
SSD_SCAN = {case.slug: case for case in ssd_scan_cases()}
REORDER = {case.slug: case for case in reorder_cases()}
SPECTRAL = {case.slug: case for case in spectral_filter_cases() + focal_loss_cases()}

# The longest sequences in their slower forms: half of a run's time, and nothing that shorter ones do not tell.
FULL = frozenset(slug for slug, case in PATH_SCAN.items() if "4 x 4096" in case.shape and case.dtype.itemsize == 2)


@pytest.mark.parametrize(("case", "variant"), variants_of(PATH_SCAN, full=FULL))
def test_path_scan(measure, case, variant):
    measure(PATH_SCAN[case], variant)


@pytest.mark.parametrize(("case", "variant"), variants_of(SSD_SCAN))
def test_ssd_scan(measure, case, variant):
    measure(SSD_SCAN[case], variant)


@pytest.mark.parametrize(("case", "variant"), variants_of(REORDER))
def test_reorder(measure, case, variant):
    measure(REORDER[case], variant)


@pytest.mark.parametrize(("case", "variant"), variants_of(SPECTRAL))
def test_spectral(measure, case, variant):
    measure(SPECTRAL[case], variant)
