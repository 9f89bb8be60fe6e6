"""Benchmarks of whole models: attention in place of mixers, steps that refuse what is wrong, where the time goes."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import breakdown
from benchmarks.cases import attention, models, trainer, vae
from benchmarks.cases.attention import Attention, frames, instants, whole
from benchmarks.cases.models import SamplingSteps, TrainingSteps, sampling_case, training_case
from benchmarks.cases.trainer import Size
from benchmarks.cases.vae import Clips, vae_case
from benchmarks.harness import record
from benchmarks.harness.case import Unavailable
from benchmarks.harness.correctness import Wrong
from benchmarks.harness.limits import Limits
from benchmarks.harness.measure import Outcome, measured
from medsora.models import MedSora


@pytest.fixture
def micro(monkeypatch):
    """A denoiser of one small block on 4 x 2 x 2 tokens, as preset "tiny"."""
    sizes = dict(hidden_size=64, depth=1, state_size=16)
    monkeypatch.setattr(trainer, "denoiser_preset", lambda name: sizes | {"patch_size": 2})
    monkeypatch.setattr(MedSora, "preset", classmethod(lambda cls, name, **options: cls(**(options | sizes))))
    monkeypatch.setitem(models.SIZES, "tiny", Size(2, 1, (8, 4, 4, 4)))


def test_attention_takes_the_place_of_mixers():
    def denoiser():
        torch.manual_seed(0)
        return MedSora(in_channels=8, hidden_size=64, depth=2, state_size=16)

    sample, timestep = torch.randn(1, 2, 8, 8, 8), torch.tensor([3])
    for groups in ((frames, instants), (whole, None)):
        model = denoiser()
        models.substitute(model, groups)
        trainer.draw_zeros(model, 0)
        for block in model.blocks:
            assert block.spatial.group is groups[0]
            assert groups[1] is None or block.temporal.group is groups[1]
        found = model(sample, timestep).sample
        for module in model.modules():
            assert not isinstance(module, Attention) or not module.plain
        models.plainly(model)
        torch.testing.assert_close(found, model(sample, timestep).sample)
        original = trainer.draw_zeros(other := denoiser(), 0) and other(sample, timestep).sample
        assert not torch.allclose(found, original)


@pytest.mark.parametrize("case", [lambda: training_case("tiny"), lambda: sampling_case("tiny", torch.float32)])
def test_every_way_of_a_step_is_right(micro, case):
    case = case()
    names = [variant.name for variant in case.variants if not variant.compiled]
    outcomes = measured(case, names, None)
    assert [outcome.failure for outcome in outcomes.values()] == [None] * len(names)
    assert {"mixers-reference", "full-attention", "factorised-attention", "windowed-attention"} <= set(names)
    for name, outcome in outcomes.items():
        assert outcome.facts["parameters"] > 0 and ("sdpa" in outcome.facts) == (not name.startswith("mixers"))


@pytest.mark.parametrize("case", [lambda: training_case("tiny"), lambda: sampling_case("tiny", torch.float32)])
def test_a_way_that_is_wrong_is_not_timed(micro, monkeypatch, case):
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda q, k, v: 3 * v)
    outcomes = measured(case(), ["mixers-reference", "full-attention"], None)
    assert outcomes["mixers-reference"].failure is None
    assert isinstance(outcomes["full-attention"].failure, Wrong), outcomes["full-attention"].failure


def test_what_is_for_gpus_is_left_out_with_the_reason():
    step = TrainingSteps("S by eights", torch.bfloat16)
    with pytest.raises(Unavailable, match="8 videos of 128 x 128 at a time are for a GPU"):
        step.take("mixers-reference")
    outcomes = measured(vae_case("VAE encode", "cogvideox", torch.float32), ["reference"], None)
    assert "the cogvideox VAE is for a GPU" in str(outcomes["reference"].failure)


@pytest.mark.parametrize("operator", ["VAE encode", "VAE decode"])
def test_the_video_vae_is_right_both_ways(monkeypatch, operator):
    monkeypatch.setitem(vae.SIZES, "tiny", Clips("tiny", 1, 8, 16))
    case = vae_case(operator, "tiny", torch.float32)
    names = [variant.name for variant in case.variants]
    outcomes = measured(case, names, None)
    assert {"reference", vae.WITHOUT} <= set(names)
    assert [outcome.failure for outcome in outcomes.values()] == [None] * len(names)
    coders = [vae.Coder(Clips("tiny", 1, 8, 16), operator, torch.float32, kind) for kind in ("spectral", "none")]
    with torch.no_grad():
        assert not torch.allclose(*(coder.code() for coder in coders))  # what is measured is at work


def test_a_record_holds_clips_a_second():
    case = training_case("tiny")
    found = record.case_record(case, {"mixers-native": Outcome([0.5, 0.25, 0.5])}, Limits(1, 1, 1, 1, "made up"))
    assert found["level"] == "model" and found["variants"]["mixers-native"]["clips_per_second"] == 16.0
    assert "clips/s" in "\n".join(record.case_lines(found))
    # Eight clips in 50 steps of half a second.
    case = sampling_case("tiny", torch.float32)
    found = record.case_record(case, {"mixers-native": Outcome([0.5])}, Limits(1, 1, 1, 1, "made up"))
    assert found["variants"]["mixers-native"]["clips_per_second"] == pytest.approx(8 / 25)


# Where the time goes


def event(name, start, seconds, parent=None, sequence=-1):
    return SimpleNamespace(
        name=name,
        device_type=torch.autograd.DeviceType.CPU,
        time_range=SimpleNamespace(start=start),
        self_cpu_time_total=seconds * 1e6,
        cpu_parent=parent,
        sequence_nr=sequence,
    )


def test_time_goes_to_the_part_that_asked_and_the_kind_of_the_operation():
    step = event(breakdown.STEP, 0, 0.5)
    part = event("part: spatial mixer", 1, 0.25, step)
    seen = event("aten::empty", 2, 0.0, part, 7)  # which only saw the number that the next one takes
    scan = event(breakdown.SCAN, 3, 0.0, part)
    inner = event("Recorded", 4, 2.0, scan, 7)
    node = event("autograd::engine::evaluate_function: RecordedBackward", 5, 0.125, step, 7)
    back = event("RecordedBackward", 6, 4.0, node)
    product = event("aten::mm", 7, 1.0, part, 8)
    other = event("autograd::engine::evaluate_function: MmBackward0", 8, 0.0, step, 8)
    product_back = event("aten::mm", 9, 3.0, other)
    lost = event("aten::mul", 10, 1.5, step)
    before = event("aten::mul", -1, 9.0)
    events = [product_back, lost, before, step, part, seen, scan, inner, node, back, product, other]
    assert sorted(breakdown.attributed(events)) == sorted(
        [
            (0, breakdown.REST, breakdown.PYTHON, 0.5),
            (0, "spatial mixer", breakdown.PYTHON, 0.25),
            (0, "spatial mixer", "scans", 2.0),
            (0, "spatial mixer", "scans", 0.125),
            (0, "spatial mixer", "scans", 4.0),
            (0, "spatial mixer", "projections", 1.0),
            (0, "spatial mixer", "projections", 3.0),
            (0, breakdown.REST, "elementwise", 1.5),
        ]
    )


@pytest.mark.parametrize(("steps", "kind"), [(TrainingSteps, "training"), (SamplingSteps, "sampling")])
def test_a_step_is_broken_down(micro, steps, kind):
    case = breakdown.broken_down(steps("tiny", torch.float32), kind, ["mixers-reference", "full-attention"], count=2)
    for way, row in case["variants"].items():
        assert row["rounds"] == 2 and row["median"] > 0
        shares = row["parts"]
        assert {"spatial mixer", "temporal mixer", "local attention", "modulation, norms, gates"} <= set(shares)
        assert ("scans" in shares["spatial mixer"]) == (way == "mixers-reference")
        assert sum(sum(found.values()) for found in shares.values()) == pytest.approx(row["profiled"])
        assert shares["spatial mixer"]["projections"] > 0
    if kind == "training":
        assert case["variants"]["mixers-reference"]["breakdown"]["optimizer"] > 0
    assert "mixers-reference" in "\n".join(breakdown.table(case))
