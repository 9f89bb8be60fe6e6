"""Whole models, in the same run as the operators: part of `pytest benchmarks/`."""

import pytest
import torch

from benchmarks.cases.models import SIZES, sampling_case, training_case
from benchmarks.cases.vae import SIZES as CLIPS
from benchmarks.cases.vae import vae_case
from benchmarks.harness.playback import variants_of

TYPES = (torch.float32, torch.bfloat16)
MODELS = [training_case(name) for name in SIZES]
MODELS += [sampling_case(name, dtype) for name in SIZES for dtype in TYPES]
MODELS += [vae_case(f"VAE {way}", name, dtype) for way in ("encode", "decode") for name in CLIPS for dtype in TYPES]
MODELS = {case.slug: case for case in MODELS}
# A default run has the tiny preset, trained as `make train` does, sampled and coded in float32.
FULL = frozenset(
    slug
    for slug, case in MODELS.items()
    if case.facts["preset"] != "tiny" or (case.passes == "forward" and case.dtype == torch.bfloat16)
)


@pytest.mark.parametrize(("case", "variant"), variants_of(MODELS, full=FULL))
def test_model(measure, case, variant):
    measure(MODELS[case], variant)
