"""gather and merge of the extension against their definition, bit for bit, on every instruction set of this machine."""

import itertools
import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch
from sampling import sampled

from medsora_ops import native
from medsora_ops.paths import ScanPath, spiral_order
from medsora_ops.reorder import native as native_reorder
from medsora_ops.reorder import reference

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

ISAS = native.extension().build_info()["isa_supported"] if native.unavailable() is None else []
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
GRIDS = ((1, 1, 1), (4, 3, 5), (2, 8, 8), (5, 1, 7), (3, 6, 1), (16, 4, 2))
KINDS = ("fw", "fh", "hw", "temporal", "raster")
CHANNELS = (1, 3, 16, 33, 130)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh tensors hold NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def spiral_path(kind, grid):
    if kind in ("temporal", "raster"):
        return getattr(ScanPath, kind)(grid)
    frames, height, width = grid
    rows, cols = {"fw": (frames, width), "fh": (frames, height), "hw": (height, width)}[kind]
    return ScanPath.plane(kind, grid, spiral_order(rows, cols, variant=6))


def walk(path):
    return path.offsets("cpu"), path.stride


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", sampled(itertools.product(GRIDS, KINDS, CHANNELS, DTYPES), 40), ids=str)
def test_agrees_with_the_definition_bit_for_bit(case, isa, monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", isa)
    grid, kind, channels, dtype = case
    path = spiral_path(kind, grid)
    x = random(2, path.sequences * path.length, channels, dtype=dtype)
    y = native_reorder.gather(x, *walk(path))
    assert torch.equal(y, reference.gather(x, *walk(path)))
    y = random(*y.shape, dtype=dtype, seed=1)
    assert torch.equal(native_reorder.merge(y, *walk(path)), reference.merge(y, *walk(path)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_every_half_number_is_added_as_torch_adds_it(dtype, isa, monkeypatch):
    """Subnormals, overflow to infinity, infinities, NaN, signed zeros and ties are all among the 2^16 patterns."""
    monkeypatch.setenv("MEDSORA_ISA", isa)
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    path = ScanPath.raster((1, 1, 1))
    others = [0.0, -0.0, 6e-8, -1e-5, 0.333, -1.0, 2049.0, 65504.0, float("inf"), float("-inf"), float("nan")]
    for other in (torch.tensor(value, dtype=dtype) for value in others):
        y = torch.stack((patterns, other.expand_as(patterns)))[None, :, None, None]
        found, wanted = native_reorder.merge(y, *walk(path)).flatten(), patterns + other
        same = (found.view(torch.int16) == wanted.view(torch.int16)) | (found.isnan() & wanted.isnan())
        assert same.all(), f"{(~same).sum()} of {len(same)} sums with {other} differ"


@pytest.mark.parametrize("threads", (1, 2, 3, 7))
def test_the_thread_count_changes_no_bit(threads):
    path = spiral_path("fw", (4, 16, 16))
    x, y = random(3, 1024, 96), random(3, 2, 16, 64, 96, seed=1)  # large enough for every thread to get work
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(native_reorder.gather(x, *walk(path)), reference.gather(x, *walk(path)))
        assert torch.equal(native_reorder.merge(y, *walk(path)), reference.merge(y, *walk(path)))
    finally:
        torch.set_num_threads(before)


BEYOND_CACHE = (
    ((8, 16, 16), 1, 512, torch.float32),  # rows made of whole cache lines
    ((1, 2, 2), 200, 512, torch.float32),  # shorter sequences than reads are asked for ahead
    ((8, 16, 16), 2, 130, torch.float32),  # not made of lines
    ((64, 4, 4), 14, 33, torch.float32),
    ((2, 3, 700), 15, 16, torch.bfloat16),
    ((2, 3, 700), 30, 9, torch.float32),
    ((4, 8, 8), 2, 2100, torch.float64),  # a row longer than what is staged
    ((3, 5, 7), 2, 7001, torch.float16),
)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", sampled([(size, kind) for size in BEYOND_CACHE for kind in KINDS], 12), ids=str)
def test_what_the_caches_cannot_keep_is_the_same_bit_for_bit(case, isa, monkeypatch):
    """From 4 MiB read and written on, results are streamed past the caches."""
    monkeypatch.setenv("MEDSORA_ISA", isa)
    (grid, videos, channels, dtype), kind = case
    path = spiral_path(kind, grid)
    x = random(videos, path.sequences * path.length, channels, dtype=torch.float32).to(dtype)
    assert 3 * x.nbytes > 4 << 20
    y = native_reorder.gather(x, *walk(path))
    assert torch.equal(y, reference.gather(x, *walk(path)))
    shifted = torch.cat((y[:, :1] * 3, y[:, 1:]), dim=1)
    assert torch.equal(native_reorder.merge(shifted, *walk(path)), reference.merge(shifted, *walk(path)))


def test_the_thread_count_changes_no_bit_of_what_is_streamed():
    path, before = spiral_path("fh", (5, 7, 9)), torch.get_num_threads()
    x = random(5, 315, 300)
    y = torch.cat((reference.gather(x, *walk(path)), reference.gather(x, *walk(path)) / 3), dim=0)
    try:
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            assert torch.equal(native_reorder.gather(x, *walk(path)), reference.gather(x, *walk(path)))
            assert torch.equal(native_reorder.merge(y, *walk(path)), reference.merge(y, *walk(path)))
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="reads /proc")
def test_memory_that_is_always_fresh_is_asked_for_in_huge_pages():
    """4 KiB at a time, the system hands it over ten times more slowly than it is written."""
    if not os.path.exists("/sys/kernel/mm/transparent_hugepage"):
        pytest.skip("this system has no transparent huge pages")
    made = native.new_empty(torch.empty(0), 3, 8 << 20)
    assert made.shape == (3, 8 << 20) and made.dtype == torch.float32
    middle, inside = made.data_ptr() + made.nbytes // 2, False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
                first, last = (int(end, 16) for end in line.split()[0].split("-"))
                inside = first <= middle < last
            elif inside and line.startswith("VmFlags:"):
                assert "hg" in line.split()
                return
    raise AssertionError("the tensor lies in no mapping")


def test_strided_input_is_read_in_place():
    path = spiral_path("fh", (3, 4, 5))
    x = random(60, 2, 24).transpose(0, 1)[..., 4:20]
    assert torch.equal(native_reorder.gather(x, *walk(path)), reference.gather(x, *walk(path)))
    y = random(12, 5, 2, 2, 20).permute(2, 3, 1, 0, 4)[..., 3:]
    assert not y.is_contiguous() and y.stride(-1) == 1
    assert torch.equal(native_reorder.merge(y, *walk(path)), reference.merge(y, *walk(path)))


def test_expanded_and_empty_input():
    path = spiral_path("hw", (2, 3, 3))
    for x in (torch.tensor(2.5).expand(2, 18, 4), random(1, 1, 4).expand(2, 18, 4), random(0, 18, 4), random(2, 18, 0)):
        y = native_reorder.gather(x, *walk(path))
        assert torch.equal(y, reference.gather(x, *walk(path)))
        assert torch.equal(native_reorder.merge(y, *walk(path)), reference.merge(y, *walk(path)))
    assert torch.equal(
        native_reorder.merge(torch.ones(()).expand(2, 2, 2, 9, 4), *walk(path)), torch.full((2, 18, 4), 2.0)
    )


@pytest.mark.parametrize(
    "offsets, stride, named",
    [
        (torch.tensor([0, 1, 6], dtype=torch.int32), 3, "offsets: reach tokens 0 to 9, wants 0 to 5"),
        (torch.tensor([-1, 0, 1], dtype=torch.int32), 3, "offsets: reach tokens -1"),
        (torch.tensor([0, 1, 2], dtype=torch.int32), 4, "offsets: reach tokens"),
        (torch.tensor([0, 1, 2]), 3, "wants contiguous int32"),
        (torch.arange(6, dtype=torch.int32)[::2], 3, "wants contiguous int32"),
        (torch.arange(4, dtype=torch.int32), 3, "wants a divisor of the 6 tokens"),
        (torch.arange(0, dtype=torch.int32), 3, "wants a divisor of the 6 tokens"),
    ],
    ids=str,
)
def test_offsets_that_leave_the_video_are_refused(offsets, stride, named):
    with pytest.raises(ValueError, match=named):
        native_reorder.gather(random(1, 6, 4), offsets, stride)


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("MEDSORA_ISA", "sse9")
    with pytest.raises(ValueError, match="MEDSORA_ISA: got 'sse9', wants one of baseline"):
        native_reorder.merge(torch.zeros(1, 2, 1, 1, 1), *walk(ScanPath.raster((1, 1, 1))))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_does_not_wait_for_threads_it_has_lost():
    script = """
        import os, torch
        from medsora_ops import native
        from medsora_ops.paths import ScanPath
        from medsora_ops.reorder.native import gather
        torch.set_num_threads(2)
        path = ScanPath.raster((4, 64, 64))
        x = torch.randn(2, 4 * 64 * 64, 32)
        before = gather(x, path.offsets(), path.stride)
        assert native.threads() == 2
        child = os.fork()
        if child == 0:
            after = gather(x, path.offsets(), path.stride)
            os._exit(0 if native.threads() == 1 and after.numpy().tobytes() == before.numpy().tobytes() else 3)
        print("child ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "child ended with 0\n", done.stderr
