"""spectral_filter and focal_frequency_loss of the extension against float64 definitions, on every instruction set.

An error may be at most twice what the definition makes in the same dtype.
"""

import itertools
import resource

import pytest
import torch
from sampling import sampled

from medsora_ops import focal_frequency_loss, native, spectral_filter, use_backend
from medsora_ops.backends import select
from medsora_ops.spectral import native as native_spectral
from medsora_ops.spectral import reference

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

ISAS = native.extension().build_info()["isa_supported"] if native.unavailable() is None else []
SIDES = (*range(1, 41), 48, 49, 64, 77, 97, 121, 128, 160)
SQUARES = [(side, side) for side in SIDES]
MIXED = sampled(itertools.product(SIDES, SIDES), 40)
CHOSEN = [(24, 40), (17, 31), (97, 8), (16, 128), (160, 5), (2, 33), (1, 16), (16, 1), (128, 128)]
LEADING = [(2, 3), (1, 1), (3, 2, 5), (1, 2, 2, 2), (5, 1)]
FOCAL = dict(alpha=1.0, patch_factor=1, ave_spectrum=False, log_matrix=False, batch_matrix=False)
SETTINGS = [
    dict(zip(FOCAL, values, strict=True))
    for values in itertools.product((0.0, 0.5, 1.0, 2.0), (1, 2, 3), (False, True), (False, True), (False, True))
]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh tensors hold NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def random(*shape, dtype=torch.float32, seed=0):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=wide).to(dtype)


def filter_case(size, leading=(2, 3), dtype=torch.float32, weight_dtype=torch.complex64):
    """x, a weight that is nowhere Hermitian, and a gradient of the output."""
    height, width = size
    weight = random(leading[1], height, width // 2 + 1, dtype=weight_dtype, seed=1)
    return random(*leading, *size, dtype=dtype), weight, random(*leading, *size, dtype=dtype, seed=2)


def widened(tensor):
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def error(found, right):
    found, right = widened(found), widened(right)
    return float((found - right).abs().square().sum().sqrt() / right.abs().square().sum().sqrt().clamp_min(1e-300))


def judge(found, plain, right, factor=2):
    """`found` may be at most twice as far from `right` as `plain`; a few numbers may be right by luck in either."""
    assert found.dtype == plain.dtype and found.shape == plain.shape
    rounding = torch.finfo(found.dtype).eps * (0.5 if found.numel() > 64 else 1.5)
    assert error(found, right) <= factor * max(error(plain, right), rounding)


def judge_filter(x, weight, grad):
    wide = [widened(t) for t in (x, weight, grad)]
    judge(
        native_spectral.spectral_filter(x, weight),
        reference.spectral_filter(x, weight),
        reference.spectral_filter(*wide[:2]),
    )
    right = reference.spectral_filter_backward(wide[2], *wide[:2])
    plain = reference.spectral_filter_backward(grad, x, weight)
    for one, other, wanted in zip(native_spectral.spectral_filter_backward(grad, x, weight), plain, right, strict=True):
        judge(one, other, wanted)


def judge_focal(pred, target, settings):
    # With one largest weight for all images, the error of a single number is in the whole result.
    factor = 3 if settings["batch_matrix"] else 2
    grad, arguments = torch.tensor(1.7), settings.values()
    wide = widened(pred), widened(target), *arguments
    judge(
        native_spectral.focal_frequency_loss(pred, target, *arguments),
        reference.focal_frequency_loss(pred, target, *arguments),
        reference.focal_frequency_loss(*wide),
        factor,
    )
    judge(
        native_spectral.focal_frequency_loss_backward(grad.to(pred.dtype), pred, target, *arguments),
        reference.focal_frequency_loss_backward(grad.to(pred.dtype), pred, target, *arguments),
        reference.focal_frequency_loss_backward(grad.to(pred.dtype).double(), *wide),
        factor,
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sides", [SQUARES, MIXED, CHOSEN], ids=["squares", "mixed", "chosen"])
def test_filter_and_gradients_at_any_sides(sides, isa, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", isa)
    for size in sides:
        judge_filter(*filter_case(size))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight_dtype", [torch.complex64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filter_dtypes_and_leading_dimensions(dtype, weight_dtype, isa, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", isa)
    for size, leading in itertools.product([(16, 16), (9, 12), (24, 40), (4, 6), (6, 5), (33, 8)], LEADING):
        judge_filter(*filter_case(size, leading, dtype, weight_dtype))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("images", [1, 2, 3, 4, 5, 7, 9, 17, 33])
def test_any_number_of_images_in_a_channel(images, isa, monkeypatch):
    """Small images share vectors, and channels are cut into parts."""
    monkeypatch.setenv("MEDSORA_ISA", isa)
    for size in ((16, 16), (4, 4), (2, 6), (10, 3), (7, 8), (1, 1)):
        judge_filter(*filter_case(size, (images, 2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_results_that_pass_the_caches_by(dtype):
    """Those take another way to memory, by whole cache lines: also where images do not begin at one."""
    for leading, size in (((24, 16), (64, 80)), ((40, 60), (29, 31))):
        judge_filter(*filter_case(size, leading, dtype))


def test_filter_reads_strided_and_expanded_tensors_in_place():
    x, weight, grad = filter_case((10, 12), (2, 3, 4))
    spread = torch.full((4, 2, 10, 3, 30), float("nan"))
    spread[..., 7:19] = x.permute(2, 0, 3, 1, 4)
    strided = spread[..., 7:19].permute(1, 3, 0, 2, 4)
    assert strided.stride()[-2] != 12 and torch.equal(strided, x)
    wanted = native_spectral.spectral_filter(x, weight)
    assert torch.equal(native_spectral.spectral_filter(strided, weight), wanted)
    assert torch.equal(native_spectral.spectral_filter(x.mT.contiguous().mT, weight), wanted)
    assert torch.equal(native_spectral.spectral_filter(x, weight.mT.contiguous().mT), wanted)
    wanted = native_spectral.spectral_filter_backward(grad, x, weight)
    spread[..., 7:19] = grad.permute(2, 0, 3, 1, 4)
    for one, other in zip(native_spectral.spectral_filter_backward(strided, x, weight), wanted, strict=True):
        assert torch.equal(one, other)
    judge_filter(x[:1, :1, :1].expand(2, 3, 4, 10, 12), weight, torch.tensor(0.5).expand(2, 3, 4, 10, 12))
    judge_filter(x, weight[:1, :1].expand(3, 10, 7), x[..., :1].expand(2, 3, 4, 10, 12))


def test_lazily_conjugated_weights_are_read_as_what_they_are():
    x, weight, _ = filter_case((6, 8))
    assert weight.conj().is_conj()
    wanted = native_spectral.spectral_filter(x, weight.conj_physical())
    assert torch.equal(native_spectral.spectral_filter(x, weight.conj()), wanted)


@pytest.mark.parametrize("isa", ISAS)
def test_a_zero_weight_leaves_every_bit(isa, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", isa)
    for size in ((11, 14), (16, 16), (32, 7)):
        x, weight, _ = filter_case(size)
        assert torch.equal(native_spectral.spectral_filter(x, torch.zeros_like(weight)), x)


@pytest.mark.parametrize("isa", ISAS)
def test_nan_and_infinity_stay_in_their_image(isa, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", isa)
    for size in ((16, 16), (8, 8), (7, 9), (20, 24), (33, 31)):
        x, weight, grad = filter_case(size, (3, 2))
        clean = native_spectral.spectral_filter(x, weight)
        clean_grad, _ = native_spectral.spectral_filter_backward(grad, x, weight)
        x[1, 0, 0, 0], x[2, 1, -1, -1] = float("nan"), float("inf")
        grad[1, 0, 0, 0] = float("nan")
        spoilt = torch.zeros(3, 2, dtype=torch.bool)
        spoilt[1, 0] = True
        grad_x, grad_weight = native_spectral.spectral_filter_backward(grad, x, weight)
        assert grad_x[spoilt].isnan().all() and torch.equal(grad_x[~spoilt], clean_grad[~spoilt])
        assert grad_weight.isnan().all()
        spoilt[2, 1] = True
        y = native_spectral.spectral_filter(x, weight)
        assert not y[spoilt].isfinite().any() and torch.equal(y[~spoilt], clean[~spoilt])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sides", [SQUARES, MIXED[::2], CHOSEN], ids=["squares", "mixed", "chosen"])
def test_focal_loss_and_gradient_at_any_sides(sides, isa, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", isa)
    for size in sides:
        judge_focal(random(2, 3, *size), random(2, 3, *size, seed=1), FOCAL)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_focal_loss_with_every_setting(dtype, isa, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", isa)
    for shape, settings in itertools.product([(2, 3, 6, 12), (3, 18, 6), (1, 2, 2, 12, 6), (40, 2, 6, 6)], SETTINGS):
        judge_focal(random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1), settings)


@pytest.mark.parametrize("settings", [{}, {"log_matrix": True}, {"batch_matrix": True}, {"alpha": 0.0}, {"alpha": 0.5}])
def test_equal_images_cost_nothing(settings):
    arguments = (FOCAL | settings).values()
    pred = random(3, 2, 16, 12)
    target = pred.clone()
    one = torch.tensor(1.0)
    assert native_spectral.focal_frequency_loss(pred, target, *arguments).item() == 0.0
    assert not native_spectral.focal_frequency_loss_backward(one, pred, target, *arguments).any()
    target[1] += 1.0  # beside images that differ, the others still get a gradient of exactly zero
    found = native_spectral.focal_frequency_loss_backward(one, pred, target, *arguments)
    assert not found[0].any() and not found[2].any() and found[1].any()


@pytest.mark.parametrize("settings", [{}, {"log_matrix": True}, {"batch_matrix": True}, {"ave_spectrum": True}])
def test_nan_makes_the_loss_nan(settings):
    arguments = (FOCAL | settings).values()
    pred, target, one = random(3, 2, 8, 12), random(3, 2, 8, 12, seed=1), torch.tensor(1.0)
    pred[1, 1, 3, 4] = float("nan")
    assert native_spectral.focal_frequency_loss(pred, target, *arguments).isnan()
    found = native_spectral.focal_frequency_loss_backward(one, pred, target, *arguments)
    wanted = reference.focal_frequency_loss_backward(one, pred, target, *arguments)
    assert torch.equal(found.isnan(), wanted.isnan())
    torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1e12])
def test_focal_loss_of_very_small_and_large_differences(size):
    pred, target = random(2, 3, 16, 20) * size, random(2, 3, 16, 20, seed=1) * size
    one, arguments = torch.tensor(1.0), FOCAL.values()
    found = native_spectral.focal_frequency_loss_backward(one, pred, target, *arguments)
    wanted = reference.focal_frequency_loss_backward(one.double(), pred.double(), target.double(), *arguments)
    if size > 1e-20:  # squares below the smallest number are 0
        assert error(found, wanted) < 1e-5
    else:
        assert found.isfinite().all() and found.abs().max() <= 2 * wanted.abs().max()


def test_focal_loss_reads_strided_and_expanded_tensors_in_place():
    pred, target, arguments = random(2, 3, 12, 20), random(2, 3, 12, 20, seed=1), (FOCAL | {"patch_factor": 2}).values()
    wanted = native_spectral.focal_frequency_loss(pred, target, *arguments)
    spread = torch.full((3, 12, 2, 50), float("nan"))
    spread[..., 5:25] = pred.permute(1, 2, 0, 3)
    strided = spread[..., 5:25].permute(2, 0, 1, 3)
    assert torch.equal(native_spectral.focal_frequency_loss(strided, target, *arguments), wanted)
    assert torch.equal(native_spectral.focal_frequency_loss(pred, target.mT.contiguous().mT, *arguments), wanted)
    judge_focal(pred, torch.tensor(0.25).expand(pred.shape), FOCAL)


def results(threads):
    """Values and gradients of both operators, in sizes that give several threads work."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = []
        for size, leading in (((16, 16), (70, 3)), ((32, 40), (9, 5)), ((64, 64), (20, 2))):
            x, weight, grad = filter_case(size, leading)
            found += [native_spectral.spectral_filter(x, weight)]
            found += native_spectral.spectral_filter_backward(grad, x, weight)
            for settings in (FOCAL, FOCAL | {"batch_matrix": True, "patch_factor": 2}):
                arguments = (x, grad, *settings.values())
                found += [native_spectral.focal_frequency_loss(*arguments)]
                found += [native_spectral.focal_frequency_loss_backward(torch.tensor(1.0), *arguments)]
        return found
    finally:
        torch.set_num_threads(before)


def test_the_thread_count_changes_no_bit():
    wanted = results(1)
    for threads in (1, 2, 3, 7):
        assert all(torch.equal(one, other) for one, other in zip(results(threads), wanted, strict=True)), threads


def test_an_image_does_not_depend_on_its_batch():
    x, weight, grad = filter_case((16, 16), (6, 2))
    x[1] *= 1e6
    together, (grad_together, _) = (
        native_spectral.spectral_filter(x, weight),
        native_spectral.spectral_filter_backward(grad, x, weight),
    )
    for i in range(6):
        alone = native_spectral.spectral_filter(x[i : i + 1], weight)
        assert torch.equal(together[i : i + 1], alone)
        grad_alone, _ = native_spectral.spectral_filter_backward(grad[i : i + 1], x[i : i + 1], weight)
        assert torch.equal(grad_together[i : i + 1], grad_alone)


@pytest.mark.parametrize("leading", [(0, 3), (2, 0), (2, 3, 0)])
def test_empty_batch(leading):
    x, weight, grad = filter_case((6, 8), leading)
    assert native_spectral.spectral_filter(x, weight).shape == x.shape
    grad_x, grad_weight = native_spectral.spectral_filter_backward(grad, x, weight)
    assert grad_x.shape == x.shape and grad_weight.shape == weight.shape and not grad_weight.any()


def test_memory_does_not_grow():
    """Not with the calls, and not with the number of different sides that have been seen."""

    def many(sides):
        for side in sides:
            x, weight, grad = filter_case((side, side + 3), (4, 2))
            native_spectral.spectral_filter(x, weight)
            native_spectral.spectral_filter_backward(grad, x, weight)
            native_spectral.focal_frequency_loss_backward(torch.tensor(1.0), x, grad, *FOCAL.values())

    sides = list(range(1, 120, 3))
    many(sides)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        many(sides)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 4096, f"{grown} KiB more after three more rounds"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.complex64, torch.float32])
def test_registered_filter(dtype, weight_dtype):
    x, weight, grad = filter_case((6, 8), (2, 3, 2), dtype, weight_dtype)
    assert select("spectral_filter", "cpu", x, weight).backend == "native"
    leaves = x.requires_grad_(), weight.requires_grad_()
    torch.library.opcheck(torch.ops.medsora_ops.spectral_filter.default, (*leaves, ""))
    torch.library.opcheck(
        torch.ops.medsora_ops.spectral_filter_backward.default, (grad, x.detach(), weight.detach(), "")
    )
    y = spectral_filter(*leaves)
    assert torch.equal(y, native_spectral.spectral_filter(x.detach(), weight.detach()))
    wanted = native_spectral.spectral_filter_backward(grad, x.detach(), weight.detach())
    for one, other in zip(torch.autograd.grad(y, leaves, grad), wanted, strict=True):
        assert torch.equal(one, other)


def test_registered_focal_loss():
    pred, target = random(2, 3, 8, 12).requires_grad_(), random(2, 3, 8, 12, seed=1)
    assert select("focal_frequency_loss", "cpu", pred, target, *FOCAL.values()).backend == "native"
    for settings in (FOCAL, FOCAL | {"patch_factor": 2, "ave_spectrum": True, "log_matrix": True}):
        arguments = (pred, target, *settings.values(), "")
        torch.library.opcheck(torch.ops.medsora_ops.focal_frequency_loss.default, arguments)
        inputs = (torch.tensor(1.0), pred.detach(), *arguments[1:])
        torch.library.opcheck(torch.ops.medsora_ops.focal_frequency_loss_backward.default, inputs)
        (found,) = torch.autograd.grad(focal_frequency_loss(pred, target, **settings), pred)
        wanted = native_spectral.focal_frequency_loss_backward(*inputs[:-1])
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "dtype, weight_dtype, size, why",
    [
        (torch.float64, torch.complex64, (4, 4), "float32 and bfloat16 with weights in single precision, not"),
        (torch.float16, torch.complex64, (4, 4), "not torch.float16 with torch.complex64"),
        (torch.float32, torch.complex128, (4, 4), "not torch.float32 with torch.complex128"),
        (torch.float32, torch.complex64, (1, 1025), "sides up to 1024, not 1025"),
        (torch.float32, torch.complex64, (521, 2), "without prime factors above 512, not 521 = 1 x 521"),
    ],
)
def test_what_it_does_not_serve_goes_to_the_definition(dtype, weight_dtype, size, why):
    x, weight, _ = filter_case(size, (1, 1), dtype, weight_dtype)
    assert select("spectral_filter", "cpu", x, weight).backend == "reference"
    with use_backend("native"), pytest.raises(ValueError, match=why):
        spectral_filter(x, weight)
    assert spectral_filter(x, weight).shape == x.shape
    if weight_dtype == torch.complex64:
        with use_backend("native"), pytest.raises(ValueError, match=why.split(" with ")[0]):
            focal_frequency_loss(x, x)


def test_long_sides():
    """Beyond the caches images are transformed through memory; large primes by dense transforms."""
    for size in ((1024, 6), (6, 1024), (509, 4), (4, 509), (300, 384)):
        judge_filter(*filter_case(size, (1, 2)))


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", "sse9")
    x, weight, _ = filter_case((4, 4))
    with pytest.raises(ValueError, match="MEDSORA_ISA: got 'sse9', wants one of baseline"):
        native_spectral.spectral_filter(x, weight)
