"""MedSora's mixers against attention at equal width and tokens, in one run: part of `pytest benchmarks/`."""

import pytest

from benchmarks.cases.layers import LARGEST_DEFAULT, layer_cases
from benchmarks.harness.playback import variants_of

LAYERS = {case.slug: case for case in layer_cases()}
LONG = [slug for slug, case in LAYERS.items() if case.facts["tokens"] >= LARGEST_DEFAULT]
# Plain PyTorch's scans take most of the time of a long case, and shorter ones tell how they compare.
FULL = frozenset(slug for slug in LONG if LAYERS[slug].facts["tokens"] > LARGEST_DEFAULT) | frozenset(
    (slug, "mixers-reference") for slug in LONG
)


@pytest.mark.parametrize(("case", "variant"), variants_of(LAYERS, full=FULL))
def test_layer(measure, case, variant):
    measure(LAYERS[case], variant)
