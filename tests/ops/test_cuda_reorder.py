"""gather and merge as the CUDA kernels do them, against the definition bit for bit: what a thread does is compiled for
the CPU too and runs there block by block. On a GPU, where there is one, the kernels themselves."""

import ctypes
import functools
import itertools

import pytest
import torch
from sampling import sampled

from medsora_ops import ScanPath, cuda, gather, merge, native, use_backend
from medsora_ops.backends import select
from medsora_ops.reorder import cuda as kernels
from medsora_ops.reorder import reference

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
on_gpu = pytest.mark.skipif(cuda.unavailable() is not None, reason=str(cuda.unavailable()))

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
GRIDS = ((1, 1, 1), (2, 3, 5), (3, 1, 7), (1, 33, 5), (9, 4, 8))
KINDS = ("fw", "fh", "hw", "temporal", "raster")
CHANNELS = (1, 2, 3, 8, 12, 17, 64, 136, 1024, 1031)


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
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def path_of(kind, grid):
    if kind in ("temporal", "raster"):
        return getattr(ScanPath, kind)(grid)
    frames, height, width = grid
    cells = {"fw": frames * width, "fh": frames * height, "hw": height * width}[kind]
    return ScanPath.plane(kind, grid, torch.randperm(cells, generator=torch.Generator().manual_seed(cells)))


def gathered(x, offsets, stride):
    """By the kernel, or by what its threads do on a CPU; with how many bytes an access moved there."""
    if x.device.type == "cuda":
        return kernels.gather(x, offsets, stride), None
    return run_on_cpu(native.extension().gather_in_blocks, kernels.run_gather, x, offsets, stride)


def merged(y, offsets, stride):
    if y.device.type == "cuda":
        return kernels.merge(y, offsets, stride), None
    return run_on_cpu(native.extension().merge_in_blocks, kernels.run_merge, y, offsets, stride)


def run_on_cpu(function, run, *arguments):
    widths = []
    found = run(lambda *addresses, **sizes: widths.append(function(*addresses, **sizes)), *arguments)
    return found, widths[0]


def judge(found_by, defined_by, x, path):
    walk = path.offsets(x.device), path.stride
    found, width = found_by(x, *walk)
    wanted = defined_by(x, *walk)
    assert found.dtype == x.dtype and found.is_contiguous() and torch.equal(found, wanted)
    return width


judge_gather = functools.partial(judge, gathered, reference.gather)
judge_merge = functools.partial(judge, merged, reference.merge)


def scanned(path, channels, dtype=torch.float32, batch=2):
    return made(batch, 2, path.sequences, path.length, channels, dtype=dtype, seed=1)


@pytest.mark.parametrize("case", sampled(itertools.product(GRIDS, KINDS, CHANNELS, DTYPES), 60), ids=str)
def test_agrees_with_the_definition_bit_for_bit(case, device):
    grid, kind, channels, dtype = case
    path = path_of(kind, grid)
    row_bytes = channels * dtype.itemsize
    widest = min(16, row_bytes & -row_bytes)
    assert judge_gather(made(2, grid[0] * grid[1] * grid[2], channels, dtype=dtype).to(device), path) in (widest, None)
    assert judge_merge(scanned(path, channels, dtype).to(device), path) in (widest, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("before, after", [(0, 0), (1, 0), (2, 0), (4, 4), (3, 5), (0, 1), (8, 8)])
def test_any_strides_and_every_width_of_access(before, after, dtype, device):
    """Channels cut out of wider rows, every other video, sequences and steps exchanged."""
    path, channels, size = path_of("fw", (2, 3, 5)), 16, dtype.itemsize
    wide = torch.full((4, 30, before + channels + after), float("nan"), dtype=dtype, device=device)
    x = wide[::2, :, before : before + channels]
    x.copy_(made(2, 30, channels, dtype=dtype))
    bits = 16 | (before * size) | ((before + after) * size)
    assert judge_gather(x, path) in (bits & -bits, None)
    y = scanned(path, channels, dtype)
    order = (3, 0, 2, 1)
    wide = torch.full((*(y.shape[i] for i in order), before + channels + after), float("nan"), dtype=dtype)
    wide[..., before : before + channels] = y.permute(*order, 4)
    y = wide.to(device)[..., before : before + channels].permute(*(order.index(i) for i in range(4)), 4)
    assert judge_merge(y, path) in (bits & -bits, None)


def test_expanded_transposed_and_empty_inputs(device):
    path = path_of("fw", (2, 3, 5))
    x = made(2, 30, 12).to(device)
    for one in (x[:1].expand(3, -1, -1), x[..., :1].expand(-1, -1, 7), x[:, :1].expand(-1, 30, -1),
                x.mT.contiguous().mT, x[:0], x[..., :0]):  # fmt: skip
        judge_gather(one, path)
    y = scanned(path, 12).to(device)
    for one in (y[:, :1].expand(-1, 2, -1, -1, -1), y[..., :1].expand(*y.shape[:-1], 5), y[:0], y[..., :0],
                torch.tensor(0.5, device=device).expand(y.shape)):  # fmt: skip
        judge_merge(one, path)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_every_half_number_is_added_as_torch_adds_it(dtype, device):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    path = ScanPath.raster((1, 1, 1))
    for value in (0.0, -0.0, 6e-8, -1e-5, 0.333, 2049.0, 65504.0, float("inf"), float("nan")):
        other = torch.tensor(value, dtype=dtype)
        y = torch.stack((patterns, other.expand_as(patterns)))[None, :, None, None].to(device)
        found, wanted = merged(y, path.offsets(device), path.stride)[0].flatten().cpu(), patterns + other
        same = (found.view(torch.int16) == wanted.view(torch.int16)) | (found.isnan() & wanted.isnan())
        assert same.all(), f"{(~same).sum()} of {len(same)} sums with {other} differ"


@pytest.mark.parametrize("kind", KINDS)
def test_videos_of_many_blocks_and_rows_that_blocks_cut(kind, device):
    """A block does 1024 pieces: sizes around that, and a length that no power of two divides."""
    path = path_of(kind, (5, 7, 9))
    for channels in (4, 13, 4096, 4100):
        judge_gather(made(3, 315, channels).to(device), path)
        judge_merge(scanned(path, channels, batch=3).to(device), path)


@pytest.mark.parametrize(
    "offsets, named",
    [
        (torch.tensor([0, 1, 2]), "wants contiguous int32 on cpu"),
        (torch.arange(6, dtype=torch.int32)[::2], "wants contiguous int32"),
        (torch.arange(4, dtype=torch.int32), "wants a divisor of the 6 tokens"),
        (torch.arange(0, dtype=torch.int32), "wants a divisor of the 6 tokens"),
    ],
    ids=str,
)
def test_offsets_of_another_kind_are_refused(offsets, named):
    with pytest.raises(ValueError, match=named):
        gathered(made(1, 6, 4), offsets, 3)
    with pytest.raises(ValueError, match=named):
        merged(made(1, 2, 2, 3, 4), offsets, 3)


def test_more_than_the_numbering_holds_is_refused_before_anything_is_touched():
    """Sizes alone: no memory stands behind them."""
    sizes = dict(sequences=1, length=1, stride=0, x_strides=(0, 0))
    offset = ctypes.c_int32(0)
    function = functools.partial(native.extension().gather_in_blocks, 0, 0, ctypes.addressof(offset), **sizes)
    with pytest.raises(ValueError, match="channels: got"):
        function(videos=1, row_bytes=2**36)
    with pytest.raises(ValueError, match="batch: got"):
        function(videos=2**31, row_bytes=16)
    with pytest.raises(ValueError, match="wants multiples of 2 bytes"):
        function(videos=1, row_bytes=3)


def test_which_gpus_compiled_kernels_run_on():
    compiled = [80, 86, 90, 120]
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (12, 0), (12, 1), (13, 0)):
        assert cuda.refusal(capability, compiled) is None
    for capability in ((7, 5), (10, 0), (10, 3)):
        told = cuda.refusal(capability, compiled)
        assert told == f"compiled for sm_80, sm_86, sm_90, sm_120, this GPU is sm_{capability[0]}{capability[1]}"


def test_without_a_gpu_the_backend_says_why():
    if cuda.unavailable() is None:
        pytest.skip("there is a GPU")
    built = native.build_info()["cuda"]
    assert ("built without CUDA" in cuda.unavailable()) == (built is None)
    with use_backend("cuda"), pytest.raises(ValueError, match="'cuda' cannot serve gather on cpu: runs on cuda only"):
        gather(made(1, 8, 3), ScanPath.raster((2, 2, 2)))
    with pytest.raises(ValueError, match="'cuda' cannot serve gather on cuda: "):
        select("gather", "cuda", made(1, 8, 3), None, 1, backend="cuda")


@on_gpu
def test_it_serves_a_gpu_and_each_is_the_gradient_of_the_other():
    path = path_of("fh", (2, 3, 5))
    x = made(2, 30, 12).cuda().requires_grad_()
    y = scanned(path, 12).cuda().requires_grad_()
    assert select("gather", "cuda", x, path.offsets("cuda"), path.stride).backend == "cuda"
    with use_backend("cuda"):
        assert torch.equal(torch.autograd.grad(gather(x, path), x, y)[0], merge(y, path))
        assert torch.equal(torch.autograd.grad(merge(y, path), y, x)[0], gather(x, path))
        assert torch.equal(torch.compile(gather, fullgraph=True)(x, path), gather(x, path))


@on_gpu
def test_it_runs_on_the_current_stream_and_in_graphs():
    path = path_of("fh", (2, 3, 5))
    x, y = made(2, 30, 12).cuda(), scanned(path, 12).cuda()
    walk = path.offsets("cuda"), path.stride
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = x * 2
        found = kernels.gather(late, *walk)
    stream.synchronize()
    assert torch.equal(found, reference.gather(x * 2, *walk))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernels.merge(y, *walk)
    y.mul_(3)
    graph.replay()
    assert torch.equal(captured, reference.merge(y, *walk))


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU at most")
def test_a_gpu_that_is_not_the_current_one():
    path = path_of("fh", (2, 3, 5))
    x = made(2, 30, 12).to("cuda:1")
    judge_gather(x, path)
    assert torch.cuda.current_device() == 0


@on_gpu
def test_a_batch_past_the_range_of_32_bits():
    path = ScanPath.raster((1, 64, 64))
    x = torch.zeros(4 * 128, 4096, 1024, dtype=torch.bfloat16, device="cuda")[::4]  # strides beyond 2^31 bytes
    x[-1].normal_()
    y = kernels.gather(x, path.offsets("cuda"), path.stride)
    assert torch.equal(y[-1, 0, 0], x[-1]) and torch.equal(y[-1, 1, 0], x[-1].flip(0))
    assert torch.equal(kernels.merge(y, path.offsets("cuda"), path.stride)[-1], x[-1] * 2)
