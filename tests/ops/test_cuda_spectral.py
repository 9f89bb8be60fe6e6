"""The frequency operators as the CUDA kernels do them, against the definition in float64: what the threads of a block
do is compiled for the CPU too and runs there step by step. On a GPU, where there is one, the kernels themselves."""

import itertools

import pytest
import torch
from sampling import sampled

from medsora_ops import cuda, focal_frequency_loss, native, spectral_filter, use_backend
from medsora_ops.backends import select
from medsora_ops.spectral import cuda as kernels
from medsora_ops.spectral import reference

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
on_gpu = pytest.mark.skipif(cuda.unavailable() is not None, reason=str(cuda.unavailable()))

# Shared memory of a block and multiprocessors. The smallest of them lets blocks walk many images and share a channel's.
CHIPS = {"sm_80": (166912, 108), "sm_86": (101376, 2), "sm_90": (232448, 132), "sm_120": (101376, 188)}
WEIGHTS = (torch.complex64, torch.float32, torch.bfloat16)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALL = [(height, width) for height in range(1, 34) for width in range(1, 34)]
LARGER = [(24, 40), (13, 31), (31, 13), (37, 97), (97, 37), (64, 64), (48, 80), (2, 254), (121, 6), (1, 512), (96, 1)]
LARGEST = [(128, 128), (127, 127), (127, 128), (112, 100)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=on_gpu)])
def device(request):
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh tensors hold NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def made(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(*shape, generator=generator, dtype=wide).to(dtype)


def filtered(x, weight, chip="sm_90"):
    """By the kernel, or by what its threads do on a CPU that stands in for the chip."""
    if x.device.type == "cuda":
        return kernels.spectral_filter(x, weight)
    return kernels.run_filter(native.extension().spectral_filter_in_blocks, CHIPS[chip], x, weight)


def filter_gradients(grad, x, weight, chip="sm_90"):
    if x.device.type == "cuda":
        return kernels.spectral_filter_backward(grad, x, weight)
    run = native.extension().spectral_filter_backward_in_blocks
    return kernels.run_filter_backward(run, CHIPS[chip], grad, x, weight)


def focal(pred, target, settings, chip="sm_90"):
    if pred.device.type == "cuda":
        return kernels.focal_frequency_loss(pred, target, *settings)
    extension = native.extension()
    return kernels.run_focal(
        extension.focal_in_blocks, extension.focal_mean_in_blocks, CHIPS[chip], pred, target, *settings
    )


def focal_gradient(grad, pred, target, settings, chip="sm_90"):
    if pred.device.type == "cuda":
        return kernels.focal_frequency_loss_backward(grad, pred, target, *settings)
    return kernels.run_focal_backward(native.extension().focal_in_blocks, CHIPS[chip], grad, pred, target, *settings)


def wide(*tensors):
    return [t.cpu().to(torch.complex128 if t.is_complex() else torch.float64) for t in tensors]


def error(found, right):
    (found,) = wide(found)
    return ((found - right).norm() / right.norm().clamp_min(1e-30)).item()


def judge(found, right, plainly):
    """As exact as plain PyTorch in the same types, or nearly."""
    for one, wanted, other in zip(found, right, plainly, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and one.is_contiguous()
        allowed = 2 * error(other, wanted) + 2e-7
        assert error(one, wanted) <= allowed


def judge_filter(x, weight, grad, chip="sm_90"):
    right = [reference.spectral_filter(*wide(x, weight)), *reference.spectral_filter_backward(*wide(grad, x, weight))]
    # On the CPU, where torch transforms in no half type and by one library.
    x_there, weight_there, grad_there = x.cpu(), weight.cpu(), grad.cpu()
    plainly = [
        reference.spectral_filter(x_there, weight_there),
        *reference.spectral_filter_backward(grad_there, x_there, weight_there),
    ]
    judge([filtered(x, weight, chip), *filter_gradients(grad, x, weight, chip)], right, plainly)


def case(sides, leading, weight_dtype=torch.complex64, dtype=torch.float32, device="cpu"):
    height, width = sides
    weight = made(leading[1], height, width // 2 + 1, dtype=weight_dtype, seed=1).to(device)
    shape = (*leading, height, width)
    return made(*shape, dtype=dtype).to(device), weight, made(*shape, dtype=dtype, seed=2).to(device)


@pytest.mark.parametrize(
    "sides, weight_dtype, dtype", sampled(itertools.product(SMALL, WEIGHTS[:2], DTYPES[:2]), 100), ids=str
)
def test_all_small_sides(sides, weight_dtype, dtype, device):
    judge_filter(*case(sides, (2, 3), weight_dtype, dtype, device))


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("sides", LARGER, ids=str)
def test_primes_and_products_of_all_radices_on_every_chip(sides, chip, device):
    judge_filter(*case(sides, (2, 2), device=device), chip)


@pytest.mark.parametrize("chip", ["sm_80", "sm_86"])
@pytest.mark.parametrize("sides", LARGEST, ids=str)
def test_sides_up_to_128_on_every_chip(sides, chip, device):
    """Where spectra of x and sums of products fit shared memory, and where they do not."""
    judge_filter(*case(sides, (2, 1), device=device), chip)


@pytest.mark.parametrize("side", [139, 160, 200, 231])
def test_larger_sides_where_shared_memory_allows(side, device):
    sides = (side, side)
    if device.type == "cuda" and kernels.refusal(*sides, cuda.chip(torch.device("cuda:0"))[0]):
        pytest.skip("not on this chip")
    judge_filter(*case(sides, (1, 1), device=device))


@pytest.mark.parametrize("weight_dtype", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sides", [(16, 16), (9, 12), (30, 25)], ids=str)
def test_every_type_of_images_and_weights(sides, dtype, weight_dtype, device):
    judge_filter(*case(sides, (2, 3, 2), weight_dtype, dtype, device))


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("leading", [(1, 1), (1, 40), (61, 1), (7, 3, 5), (2, 2, 3, 2), (1, 2, 37)], ids=str)
def test_blocks_that_hold_several_images_and_walk_many(leading, chip, device):
    judge_filter(*case((8, 6), leading, device=device), chip)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(dtype, device):
    """Rows cut out of longer ones, at odd addresses; dimensions exchanged, expanded and reversed in order."""
    x, weight, grad = case((10, 12), (2, 3, 4), dtype=dtype, device=device)
    for before, after in ((0, 0), (1, 0), (2, 2), (3, 4)):
        longer = torch.full((*x.shape[:-1], before + 12 + after), float("nan"), dtype=dtype, device=device)
        cut = longer[..., before : before + 12]
        judge_filter(cut.copy_(x), weight, grad)
        judge_filter(x, weight, cut.copy_(grad))
    for one in (x.movedim(1, 3).contiguous().movedim(3, 1), x[:, :, ::2], x[:1].expand(3, -1, -1, -1, -1),
                x.mT.contiguous().mT, x[..., :1].expand(x.shape), x[..., ::2]):  # fmt: skip
        judge_filter(one, weight[:, :, : one.shape[-1] // 2 + 1], torch.ones_like(one[:1, :1, :1]).expand(one.shape))
    judge_filter(x, weight.conj(), grad)
    judge_filter(x, weight.real, grad)


def test_no_images_and_no_channels(device):
    for leading in ((0, 3), (2, 0), (2, 3, 0)):
        x, weight, grad = case((4, 6), leading, device=device)
        assert filtered(x, weight).shape == x.shape
        grad_x, grad_weight = filter_gradients(grad, x, weight)
        assert grad_x.shape == x.shape and torch.equal(grad_weight, torch.zeros_like(weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_weight_leaves_every_bit(dtype, device):
    x, weight, _ = case((20, 24), (2, 3), dtype=dtype, device=device)
    assert torch.equal(filtered(x, torch.zeros_like(weight)), x)


def test_the_same_bits_every_time(device):
    x, weight, grad = case((18, 20), (40, 3), device=device)
    found = [filter_gradients(grad, x, weight, "sm_86") for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


SETTINGS = list(itertools.product((0.0, 0.5, 1.0, 2.0), (1, 2, 3), (False, True), (False, True), (False, True)))
SHAPES = [(2, 3, 12, 18), (3, 2, 6, 6), (2, 1, 1, 1), (2, 2, 3, 9, 5), (2, 5, 4), (40, 2, 16, 16), (1, 31, 37)]
FOCAL = [
    (shape, settings)
    for shape, settings in itertools.product(SHAPES, SETTINGS)
    if not (shape[-2] % settings[1] or shape[-1] % settings[1])
]


def judge_focal(pred, target, settings, chip="sm_90"):
    grad = torch.tensor(1.7, dtype=pred.dtype)
    right = [
        reference.focal_frequency_loss(*wide(pred, target), *settings),
        reference.focal_frequency_loss_backward(*wide(grad, pred, target), *settings),
    ]
    there = [pred.cpu(), target.cpu()]
    plainly = [
        reference.focal_frequency_loss(*there, *settings),
        reference.focal_frequency_loss_backward(grad, *there, *settings),
    ]
    loss = focal(pred, target, settings, chip)
    judge([loss, focal_gradient(grad.to(pred.device), pred, target, settings, chip)], right, plainly)


@pytest.mark.parametrize("shape, settings", sampled(FOCAL, 70), ids=str)
@pytest.mark.parametrize("chip", ["sm_90", "sm_86"])
def test_focal_loss_in_every_form(shape, settings, chip, device):
    judge_focal(*(made(*shape, seed=seed).to(device) for seed in (3, 4)), settings, chip)


@pytest.mark.parametrize("batch_matrix", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sides", [(64, 64), (128, 128), (24, 40), (97, 31)], ids=str)
def test_focal_loss_on_larger_images(sides, dtype, batch_matrix, device):
    pred, target = (made(1, 2, *sides, dtype=dtype, seed=seed).to(device) for seed in (3, 4))
    judge_focal(pred, target, (1.0, 1, False, False, batch_matrix), "sm_86")


def test_focal_loss_of_any_strides(device):
    pred, target = (made(2, 3, 12, 20, seed=seed).to(device) for seed in (3, 4))
    for one in (pred[..., 1:], pred.movedim(1, 3).contiguous().movedim(3, 1), pred[:, :, ::2], pred[..., ::2],
                pred[..., :1].expand(pred.shape)):  # fmt: skip
        judge_focal(one, target[..., : one.shape[-2], : one.shape[-1]], (1.0, 1, False, True, False))
        judge_focal(target[..., : one.shape[-2], : one.shape[-1]], one, (2.0, 1, True, False, True))


@pytest.mark.parametrize("settings", [(alpha, 1, False, *logs) for alpha in (0.0, 1.0) for logs in
                                      itertools.product((False, True), (False, True))], ids=str)  # fmt: skip
def test_equal_images_cost_nothing(settings, device):
    pred = made(2, 3, 8, 8).to(device)
    assert focal(pred, pred.clone(), settings).item() == 0.0
    found = focal_gradient(torch.ones((), device=device), pred, pred.clone(), settings)
    assert torch.equal(found, torch.zeros_like(pred))


@pytest.mark.parametrize("batch_matrix", [False, True])
def test_what_is_not_a_number_is_not_hidden(batch_matrix, device):
    pred, target = (made(2, 3, 8, 8, seed=seed).to(device) for seed in (3, 4))
    pred[1, 2, 3, 4] = float("nan")
    settings = (1.0, 1, False, False, batch_matrix)
    assert focal(pred, target, settings).isnan()
    found = focal_gradient(torch.ones((), device=device), pred, target, settings)
    assert found[1, 2].isnan().all() and not found[0].isnan().any()
    x, weight, _ = case((8, 8), (2, 3), device=device)
    x[1, 2, 3, 4] = float("nan")
    found = filtered(x, weight)
    assert found[1, 2].isnan().all() and not found[0].isnan().any()


def test_what_a_block_takes_fits_every_chip_up_to_128():
    """And no more than is worth it beyond: sides that Hopper's shared memory holds, and none that it does not."""
    smallest = min(shared for shared, _ in CHIPS.values())
    assert all(kernels.refusal(h, w, smallest) is None for h in range(1, 129) for w in range(1, 129))
    assert kernels.refusal(231, 231, CHIPS["sm_90"][0]) is None
    told = kernels.refusal(256, 256, CHIPS["sm_90"][0])
    assert "bytes of a block's shared memory, this GPU has 232448" in told
    assert "sides up to 1024" in kernels.refusal(8, 1025, CHIPS["sm_90"][0])
    assert "without prime factors above 512, not 521" in kernels.refusal(4, 521, CHIPS["sm_90"][0])
    with pytest.raises(ValueError, match="256 x 256 take .* bytes of shared memory, the chip has 232448"):
        filtered(*case((256, 256), (1, 1))[:2])


def test_more_images_than_are_numbered_is_refused_before_anything_is_touched():
    with pytest.raises(ValueError, match="images: got 4294967296, wants at most 2147483647"):
        native.extension().spectral_filter_in_blocks(
            (0, (1, 65536, 65536), (0, 0, 0), 0), 0, (0, (1, 65536, 65536), (0, 0, 0), 0),
            wide=True, sides=(2, 2), dtype="float32", chip=CHIPS["sm_90"],
        )  # fmt: skip


X, WEIGHT = torch.zeros(2, 3, 4, 6), torch.zeros(3, 4, 4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: spectral_filter(X[:, :, :0].to(d), WEIGHT[:, :0].to(d)), r"x: got shape \(2, 3, 0, 6\)"),
        (lambda d: spectral_filter(X[..., :0].to(d), WEIGHT[..., :1].to(d)), r"x: got shape \(2, 3, 4, 0\)"),
        (lambda d: spectral_filter(X.to(d), WEIGHT[:, :3].to(d)), r"weight: got shape \(3, 3, 4\), wants \(3, 4, 4\)"),
        (lambda d: spectral_filter(X.int().to(d), WEIGHT.to(d)), r"x: got torch.int32, wants"),
        (lambda d: spectral_filter(X.to(d), WEIGHT.int().to(d)), r"weight: got torch.int32, wants"),
        (lambda d: spectral_filter(X.to(d), WEIGHT.to("meta")), r"weight: got device meta, wants that of x"),
        (lambda d: focal_frequency_loss(X[..., :0].to(d), X[..., :0].to(d)), r"pred: got shape \(2, 3, 4, 0\), wants"),
        (lambda d: focal_frequency_loss(X.to(d), X[..., :4].to(d)), r"target: got shape \(2, 3, 4, 4\), wants"),
        (lambda d: focal_frequency_loss(X.int().to(d), X.int().to(d)), r"pred: got torch.int32, wants"),
        (lambda d: focal_frequency_loss(X.to(d), X.to("meta")), r"target: got device meta, wants that of pred"),
    ],
)
def test_bad_input_is_refused_before_any_launch(call, message, device):
    with pytest.raises(ValueError, match=message):
        call(device)


@on_gpu
def test_it_serves_a_gpu_compiled_or_not():
    x, weight, grad = (t.requires_grad_() for t in case((12, 14), (2, 3, 2), device="cuda"))
    assert select("spectral_filter", "cuda", x, weight, backend="cuda").backend == "cuda"
    with use_backend("cuda"):
        for call in (spectral_filter, torch.compile(spectral_filter, fullgraph=True)):
            found = torch.autograd.grad(call(x, weight), (x, weight), grad)
            for one, wanted in zip(found, filter_gradients(grad, x, weight), strict=True):
                assert torch.equal(one, wanted)
        for call in (focal_frequency_loss, torch.compile(focal_frequency_loss, fullgraph=True)):
            (found,) = torch.autograd.grad(call(x, grad.detach()), x)
            one = torch.ones((), device="cuda")
            assert torch.equal(found, focal_gradient(one, x, grad, (1.0, 1, False, False, False)))


@on_gpu
def test_it_runs_on_the_current_stream_and_in_graphs():
    x, weight, grad = case((128, 128), (2, 3), device="cuda")
    settings = (1.0, 1, False, False, True)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = x * 2
        found = filtered(late, weight)
    stream.synchronize()
    assert torch.equal(found, filtered(x * 2, weight))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [filtered(x, weight), *filter_gradients(grad, x, weight), focal(x, grad, settings),
                    focal_gradient(torch.ones((), device="cuda"), x, grad, settings)]  # fmt: skip
    x.mul_(3)
    graph.replay()
    again = [filtered(x, weight), *filter_gradients(grad, x, weight), focal(x, grad, settings),
             focal_gradient(torch.ones((), device="cuda"), x, grad, settings)]  # fmt: skip
    assert all(torch.equal(one, other) for one, other in zip(captured, again, strict=True))


@on_gpu
def test_nothing_waits_for_the_gpu():
    x, weight, grad = case((32, 32), (2, 3), device="cuda")
    settings, one = (1.0, 1, True, True, True), torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        filtered(x, weight), filter_gradients(grad, x, weight)
        focal(x, grad, settings), focal_gradient(one, x, grad, settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU at most")
def test_a_gpu_that_is_not_the_current_one():
    judge_filter(*case((64, 64), (2, 3), device="cuda:1"))
    assert torch.cuda.current_device() == 0


@on_gpu
def test_images_past_the_range_of_32_bits():
    x = torch.zeros(2**11, 1, 2**10, 32, 64, dtype=torch.bfloat16, device="cuda")[:, :, ::2]  # 8 GB
    x[-1].normal_()
    weight = made(1, 32, 33, dtype=torch.complex64).cuda()
    assert torch.equal(filtered(x, weight)[-1:], filtered(x[-1:], weight))
