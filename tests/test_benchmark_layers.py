"""Benchmarks of layers: attention against its definition token by token, cases that refuse what is wrong, growth."""

import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend

from benchmarks.cases import attention, layers
from benchmarks.cases.attention import (
    Attention,
    choose_kernels,
    frames,
    instants,
    plain_attention,
    put_back,
    whole,
    windows,
)
from benchmarks.cases.layers import layer_case
from benchmarks.harness import record
from benchmarks.harness.case import Unavailable
from benchmarks.harness.correctness import Wrong
from benchmarks.harness.limits import Limits
from benchmarks.harness.measure import Outcome, measured
from benchmarks.harness.memory import peak_memory
from benchmarks.harness.work import PASSES
from benchmarks.reports import scaling

GRID = (4, 6, 8)
GROUPS = (whole, frames, instants, windows)


# Attention


def members(group, grid) -> torch.Tensor:
    """The number of the group that each token is in, by the token's coordinates."""
    f, h, w = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    a, b, c = (min(side, length) for side, length in zip(grid, attention.WINDOW))
    number = {
        whole: 0 * f,
        frames: f,
        instants: h * grid[2] + w,
        windows: (f // a * (grid[1] // b) + h // b) * (grid[2] // c) + w // c,
    }
    return number[group].flatten()


@pytest.mark.parametrize("grid", [GRID, (8, 16, 8)])
@pytest.mark.parametrize("group", GROUPS)
def test_attention_sees_the_tokens_of_its_group_and_no_others(group, grid):
    torch.manual_seed(0)
    layer, x = Attention(128, group).double(), torch.randn(2, math.prod(grid), 128, dtype=torch.float64)
    q, k, v = layer.enter(x).view(2, -1, 3, 2, 64).permute(2, 0, 3, 1, 4)
    number = members(group, grid)
    scores = (q @ k.transpose(-1, -2) / 8).masked_fill(number[:, None] != number, -torch.inf)
    wanted = layer.leave((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(layer(x, grid), wanted)
    layer.plain = True
    torch.testing.assert_close(layer(x, grid), wanted)
    assert torch.equal(put_back(group(x, grid), group, 2, grid), x)


def test_the_definition_takes_queries_in_blocks_without_changing_its_gradients(monkeypatch):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, 10, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    found = []
    for scores in (attention.SCORES, 2 * 2 * 10 * 3):  # all queries together; three at a time
        monkeypatch.setattr(attention, "SCORES", scores)
        out = plain_attention(*inputs)
        found.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    torch.testing.assert_close(*found)


def test_each_attention_takes_the_fastest_kernel_that_runs(monkeypatch):
    seconds = {SDPBackend.FLASH_ATTENTION: 2.0, SDPBackend.MATH: 1.0}
    monkeypatch.setattr(attention, "_trial", lambda kernel, q, k, v, backward: seconds.get(kernel))
    model = attention.Mixing(Attention(64, frames), Attention(64, instants))
    found = choose_kernels(model, torch.zeros(1, 4 * 4 * 4, 64), (4, 4, 4), backward=True)
    assert [layer.kernel for layer in model.mixers] == [SDPBackend.MATH] * 2
    assert found["frames"] == {"default": "flash", "fastest": "math", "seconds": {"flash": 2.0, "math": 1.0}}
    # What SDPA takes by itself stays where few calls cannot tell another one from it.
    seconds[SDPBackend.FLASH_ATTENTION] = 1.05
    found = choose_kernels(model, torch.zeros(1, 4 * 4 * 4, 64), (4, 4, 4), backward=True)
    assert found["frames"]["fastest"] == "flash" and model.mixers[0].kernel == SDPBackend.FLASH_ATTENTION
    # Where all scores together are many, the plain products are not tried: they might not fit.
    monkeypatch.setattr(attention, "SCORES", 10)
    choose_kernels(model, torch.zeros(1, 4 * 4 * 4, 64), (4, 4, 4), backward=True)
    assert [layer.kernel for layer in model.mixers] == [SDPBackend.FLASH_ATTENTION] * 2


def test_a_kernel_that_cannot_run_here_is_none_to_choose_from():
    model = Attention(64, whole)
    found = choose_kernels(model, torch.zeros(1, 64, 64), (4, 4, 4), backward=True)["whole"]
    assert found["seconds"].keys() == {"flash", "math"}  # the others are for GPUs
    assert found["fastest"] == attention.kernel_name(model.kernel)
    assert found["seconds"][found["fastest"]] <= attention.CLEARLY * min(found["seconds"].values())


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="width: got 100, wants a multiple of 64"):
        Attention(100, whole)
    with pytest.raises(ValueError, match=r"grid: got \(6, 8, 8\), wants sides"):
        windows(torch.zeros(1, 6 * 8 * 8, 4), (6, 8, 8))


# Cases


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("passes", PASSES)
def test_every_layer_is_right_and_has_its_own_gradients(dtype, passes):
    case = layer_case((2, 4, 4), dtype, passes, width=64, state=16)
    names = [variant.name for variant in case.variants if not variant.compiled]
    outcomes = measured(case, names, None)
    assert {"mixers-reference", *layers.ATTENTIONS} <= set(names)
    assert [outcome.failure for outcome in outcomes.values()] == [None] * len(names)
    # In and out 64 x 192 and 64 x 64, twice where space and time are apart; all scans' layers have the same.
    assert [outcomes[name].facts["parameters"] for name in layers.ATTENTIONS] == [16384, 32768, 16384]
    assert len({outcomes[name].facts["parameters"] for name in names if name.startswith("mixers")}) == 1
    for name in layers.ATTENTIONS:
        assert outcomes[name].facts["sdpa"]
        back = {"d(x)", "d(mixers.0.enter.weight)"} <= set(outcomes[name].errors)
        assert back == (passes == PASSES[1])


def test_a_layer_that_is_wrong_is_not_timed(monkeypatch):
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda q, k, v: v)
    monkeypatch.setattr(attention, "choose_kernels", lambda *_: {"none": {}})
    monkeypatch.setattr(layers, "choose_kernels", lambda *_: {"none": {}})
    case = layer_case((2, 4, 4), torch.float32, PASSES[0], width=64, state=16)
    outcomes = measured(case, ["mixers-reference", *layers.ATTENTIONS], None)
    assert outcomes["mixers-reference"].failure is None
    assert all(isinstance(outcomes[name].failure, Wrong) for name in layers.ATTENTIONS)


def test_more_tokens_than_a_cpu_takes_are_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr(layers, "LARGEST_ON_CPU", 16)
    case = layer_case((2, 4, 4), torch.float32, PASSES[0], width=64, state=16)
    outcomes = measured(case, ["mixers-reference", "full-attention"], None)
    for outcome in outcomes.values():
        assert isinstance(outcome.failure, Unavailable) and "up to 16 tokens, this has 32" in str(outcome.failure)


# Memory


def test_the_peak_counts_what_is_held_at_once_and_the_result():
    def call():
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        return second, torch.empty(100)

    before = torch.empty(10_000)
    assert peak_memory(call, torch.device("cpu")) == 4 * 1500
    assert peak_memory(lambda: before.view(-1), torch.device("cpu")) == 0


# Growth with tokens


def power(factor: float, exponent: float, sizes=(256, 1024, 4096, 16384)) -> list[tuple[int, float]]:
    return [(tokens, factor * tokens**exponent) for tokens in sizes]


def test_a_power_is_found_again():
    found = scaling.fit(power(3e-6, 1.7))
    assert (found.exponent, found.factor) == pytest.approx((1.7, 3e-6)) and found.residual < 1e-9
    assert found.at(1000) == pytest.approx(3e-6 * 1000**1.7)
    # Off by e^0.1 up, down, down and up: the line stays where it is, and 0.1 is how far the points lie from it.
    bent = [(t, s * math.exp(0.1 * sign)) for (t, s), sign in zip(power(1.0, 2.0), (1, -1, -1, 1))]
    assert scaling.fit(bent).exponent == pytest.approx(2.0) and scaling.fit(bent).residual == pytest.approx(0.1)


@pytest.mark.parametrize("points", [[(256, 1.0)], [(256, 1.0), (256, 2.0)], [(256, 1.0), (512, 0.0)], []])
def test_what_has_no_power_is_refused(points):
    with pytest.raises(ValueError, match="points: got"):
        scaling.fit(points)


def test_powers_cross_where_they_do():
    linear, square = power(1.0, 1.0), power(1 / 2000, 2.0)
    assert scaling.crossover(linear, square) == pytest.approx(2000)
    assert scaling.crossover(square, linear) is None  # the slower one at the largest size
    assert scaling.crossover(linear, power(2.0, 1.0)) is None  # faster everywhere
    assert scaling.crossover(linear, power(1 / 2000, 2.0, sizes=(8192,))) is None  # no size that both have
    (found,) = scaling.crossovers({"square": square, "linear": linear})
    assert (found.faster, found.slower) == ("linear", "square")
    # Of several crossings the last counts: from there on it is faster.
    wavy = [(256, 0.5), (512, 2.0), (1024, 0.5)]
    assert scaling.crossover(wavy, [(t, 1.0) for t, _ in wavy]) == pytest.approx(512 * 2**0.5)


def test_curves_and_lines_of_recorded_layers():
    limits = Limits(1e9, 1e9, 1e9, 1, "made up")
    cases = []
    for tokens, grid in ((256, (4, 8, 8)), (1024, (4, 16, 16)), (4096, (16, 16, 16))):
        case = layer_case(grid, torch.float32, PASSES[0], width=64, state=16)
        slow, fast = Outcome([tokens**2 * 1e-9]), Outcome([tokens * 1e-6])
        slow.peak, fast.peak = 10 * tokens**2, 100 * tokens
        slow.facts = {"sdpa": {"whole": {"default": "flash", "fastest": "math", "seconds": {"flash": 2, "math": 1}}}}
        cases.append(record.case_record(case, {"full-attention": slow, "mixers-native": fast}, limits))
    assert cases[0]["level"] == "layer" and cases[0]["tokens"] == 256 and "floor" not in cases[0]
    curves = scaling.layer_curves(cases)["mixing layer", "float32", "forward"]
    assert curves["mixers-native"] == [(t, t * 1e-6) for t in (256, 1024, 4096)]
    text = "\n".join(scaling.lines(cases))
    assert "full-attention  256 to 4096 tokens: time as tokens ^ 2.00 (residual 0.00), memory as tokens ^ 2.00" in text
    assert "mixers-native is faster than full-attention from about 1,000 tokens on" in text
    table = "\n".join(record.table({"limits": {"copy": 1, "operations": 1, "exponentials": 1}, "cases": cases}))
    assert "full-attention (whole) by the math kernel; here run flash, math; by default flash" in table


def test_a_curve_that_is_no_power_and_a_crossing_between_far_sizes_are_told_as_such():
    assert scaling.exponent(power(1.0, 1.5)) == "1.50"
    assert scaling.exponent([(256, 1.0), (1024, 12.0), (4096, 8.0)]).startswith("~")
    assert [scaling.about(tokens) for tokens in (3569.2, 95.4, 12345.0)] == ["about 3,600", "about 95", "about 12,000"]


def test_mixing_adds_each_mixer_to_its_tokens():
    class Twice(nn.Module):
        def forward(self, x, grid):
            return 2 * x

    x = torch.randn(1, 8, 4)
    torch.testing.assert_close(attention.Mixing(Twice(), Twice())(x, (2, 2, 2)), 9 * x)
