"""Scans whose tensors and scratch pass 2^31 numbers: every kernel must compute their addresses in 64 bits.

Memory that nobody touches is not taken: of so many videos only the programs of the last one run, and must give what it
has alone, to the bit.
"""

import sys
from dataclasses import replace

import pytest
import torch
from sampling import sampled
from scan_case import Case
from test_chunk_scan import ssd_case

from medsora_ops.launch import INTERPRETED
from medsora_ops.scan import chunk_launch, chunk_path_launch, sequence_launch, sums, tile_launch
from medsora_ops.scan.chunk_config import BACKWARD, FORWARD
from medsora_ops.scan.sums import sum_rows
from medsora_ops.scan.tile_launch import Mixer

if not INTERPRETED:
    pytest.skip("a GPU takes also memory that nobody touches", allow_module_level=True)

from triton.runtime import interpreter  # noqa: E402

LIMIT = 2**31
LAST = 8  # programs of each launch that run: as many as one video has, or more
FINE = dict(tokens=16, channels=256, segment=2, row_numbers=8192, row_programs=LIMIT, splits=1)


@pytest.fixture
def last_programs(monkeypatch):
    """Of each launch only the last programs run; its memory is neither filled nor copied."""
    torch.use_deterministic_algorithms(False)

    def last(*bounds):
        numbers = range(*bounds)
        of_grid = sys._getframe(1).f_code is interpreter.GridExecutor.__call__.__code__
        return numbers[-LAST:] if of_grid else numbers

    monkeypatch.setattr(interpreter, "range", last, raising=False)
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)


@pytest.fixture
def shares(monkeypatch, last_programs):
    """Of each call of `sum_rows`, what its programs would sum: of each source the last video's part, or last row.

    And what they would add: of the last plane the last video's part.
    """
    seen = []

    def keep(sources, outs, planes=None, onto=None):
        of_call = [] if planes is None else [planes[-1, -1].clone()]
        for source, out in zip(sources, outs, strict=True):
            if out is not None:
                last = source[-1] if source.dim() < 4 else source[-1, -1]
                of_call.append(last.flatten()[: out.numel()].clone())
        seen.append(of_call)

    for module in (sums, chunk_launch, chunk_path_launch):
        monkeypatch.setattr(module, "sum_rows", keep)
    return seen


def one_of_many(alone, videos):
    """(1, ...) -> (videos, ...), the last one alone's."""
    try:
        many = alone.new_empty(videos, *alone.shape[1:])
    except RuntimeError as error:
        pytest.skip(f"no addresses for {videos * alone[0].nbytes} bytes: {error}")
    many[-1] = alone[0]
    return many


def check_last(found, alone):
    for many, one in zip(found, alone, strict=True):
        assert torch.equal(many[-1], one[0])


def check_shares(shares):
    found, alone = shares
    assert len(found) == len(alone) and all(map(torch.equal, found, alone))


PATH = Case(kinds=("raster",), heads=2, head_dim=256, state=32, dtype=torch.bfloat16)


@pytest.mark.parametrize("room", [tile_launch, sequence_launch])
def test_whole_sequences(shares, room):
    """2^31 numbers of rows, their gradient, and scratch of the pass forward."""
    case = replace(PATH, grid=(1, 1, 16))
    (rows, *parameters), (grad,) = case.tensors("cpu")
    mixer = Mixer.of(parameters[0], parameters[2], parameters[5], *case.settings.values())
    config = replace(room.BACKWARD, tokens=16, state=32, channels=256, programs=LIMIT)
    tables, strides = [case.paths[0].offsets(rows.device)], [case.paths[0].stride]
    videos = LIMIT // (2 * 16 * case.width) + 9

    def run(rows, grad):
        grad_rows = torch.empty_like(rows)
        (out,) = room.forward(rows, parameters, tables, strides, mixer, config)
        room.backward([grad], grad_rows, rows, parameters, tables, strides, mixer, config)
        return out, grad_rows

    many = one_of_many(rows, videos)
    assert many.numel() > LIMIT
    check_last(run(many, one_of_many(grad, videos)), run(rows, grad))
    check_shares(shares)


@pytest.mark.parametrize("room", [tile_launch, sequence_launch])
def test_whole_sequences_of_another_path(shares, room):
    """2^31 numbers of its share of the gradient, and of all paths' scratch."""
    case = replace(PATH, kinds=("raster",) * 3, grid=(1, 1, 16))
    (rows, *parameters), (grad, *_) = case.tensors("cpu")
    mixer = Mixer.of(parameters[0], parameters[2], parameters[5], *case.settings.values())
    config = replace(room.BACKWARD, tokens=16, state=32, channels=256, programs=LIMIT)
    tables, strides = [p.offsets(rows.device) for p in case.paths], [p.stride for p in case.paths]
    videos = LIMIT // (16 * rows.shape[2]) + 9

    def run(rows, grad):
        room.backward([grad] * 3, torch.empty_like(rows), rows, parameters, tables, strides, mixer, config)

    run(one_of_many(rows, videos), one_of_many(grad, videos))
    run(rows, grad)
    check_shares(shares)
    assert shares[0][0].numel() == rows.numel() and shares[0][0].all()


@pytest.mark.parametrize(("paths", "cut"), sampled([(1, {}), (2, {}), (1, dict(segment=1, splits=3))], 2), ids=str)
def test_paths_chunk_by_chunk(shares, paths, cut, monkeypatch):
    """2^31 numbers of rows, their gradient, y, states on the way and where runs meet, and of another path's share of
    the gradient."""
    monkeypatch.setattr(chunk_path_launch, "TOGETHER", LIMIT)
    case = replace(PATH, grid=(1, 1, 48))
    (rows, *parameters), (grad,) = case.tensors("cpu")
    path = case.paths[0]
    along = ([path.offsets(rows.device)] * paths, [path.stride] * paths, *case.settings.values())
    videos = LIMIT // (2 * 48 * case.width) + 9
    forward, backward = (replace(way, **FINE | cut, conv_channels=256) for way in (FORWARD, BACKWARD))

    def run(rows, grad):
        grad_rows = torch.empty_like(rows)
        outputs = chunk_path_launch.path_scan_chunked(rows, *parameters, *along, config=forward)
        grads = [grad] * paths
        chunk_path_launch.path_scan_chunked_backward(grads, grad_rows, rows, *parameters, *along, config=backward)
        return *outputs, grad_rows

    many = one_of_many(rows, videos)
    assert many.numel() > LIMIT
    check_last(run(many, one_of_many(grad, videos)), run(rows, grad))
    check_shares(shares)


def test_planes(last_programs):
    """Added to 2^31 numbers."""
    onto, columns = torch.randn(48, 200).to(torch.bfloat16), slice(80, 180)
    planes = torch.randn(2, 48, 100)
    videos = LIMIT // (48 * 100) + 9
    many = planes.new_empty(2, videos, 48, 100)
    many[:, -1] = planes
    found = one_of_many(onto[None], videos)
    sum_rows([torch.ones(1, 1)], [torch.empty(1)], many, found[..., columns])
    wanted = onto.clone()
    sum_rows([torch.ones(1, 1)], [torch.empty(1)], planes[:, None], wanted[None, :, columns])
    assert torch.equal(found[-1], wanted) and not torch.equal(wanted, onto)


@pytest.mark.parametrize("cut", sampled([{}, dict(segment=1, splits=3)], 1), ids=str)
def test_ssd(shares, cut):
    """2^31 numbers of x, y, z and their gradients, and states on the way and where runs meet."""
    arguments, grads = ssd_case(48, heads=2, head_dim=256, state=32, dtype=torch.bfloat16)
    videos = LIMIT // (48 * 2 * 256) + 9
    forward, backward = replace(FORWARD, **FINE | cut), replace(BACKWARD, **FINE | cut)

    def run(arguments, grads):
        outputs = chunk_launch.ssd_scan(*arguments, config=forward)
        grad_x, _, _, _, _, _, grad_z, _, grad_initial = chunk_launch.ssd_scan_backward(
            grads, *arguments, config=backward
        )
        return *outputs, grad_x, grad_z, grad_initial

    def many(values):
        of_videos = [isinstance(v, torch.Tensor) and v.dim() > 2 for v in values]
        return [one_of_many(v, videos) if along else v for v, along in zip(values, of_videos, strict=True)]

    check_last(run(many(arguments), many(grads)), run(arguments, grads))
    check_shares(shares)
