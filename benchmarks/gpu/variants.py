"""The ways to compute a shape's scans: each takes the shape's inputs by name and returns one output a path."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.chain import chain_path_scan, scan_orders
from benchmarks.gpu.shapes import Shape
from benchmarks.harness.case import Unavailable, Variant, inputs_on_cpu
from medsora_ops import path_scan, use_backend
from medsora_ops.scan import reference

OURS, DEFINITION, COMPILED = "triton", "definition", "torch.compile"
LIBRARY_CHUNK = 256  # mamba_ssm's own default
LONGEST_COMPILED = 256
Call = Callable[..., tuple[Tensor, ...]]


def variants(shape: Shape, compiled: bool) -> dict[str, Call]:
    """By name, the operators first. A call raises Unavailable where its library is missing or cannot serve."""
    found = {
        OURS: functools.partial(_on_backend, "triton", shape),
        "chain": functools.partial(_chain, shape),
        **{name: functools.partial(call, shape) for name, call in PEERS.items()},
        DEFINITION: functools.partial(_on_backend, "reference", shape),
    }
    if compiled:
        found[COMPILED] = compiled_definition(shape)
    return found


def _on_backend(backend: str, shape: Shape, **inputs) -> tuple[Tensor, ...]:
    with use_backend(backend):
        return path_scan(path=shape.paths, head_dim=shape.scale.head_dim, **inputs)


def _chain(shape: Shape, **inputs) -> tuple[Tensor, ...]:
    return chain_path_scan(*inputs.values(), shape.paths, head_dim=shape.scale.head_dim)


def compiled_definition(shape: Shape) -> Call:
    """The definition as plain PyTorch that torch.compile can look into, compiled at the first call."""
    compiled = None

    def plain(offsets, **inputs):
        settings = (shape.scale.head_dim, 1, True, 1e-5, shape.scale.width)
        return tuple(reference.path_scan(*inputs.values(), offsets, [p.stride for p in shape.paths], *settings))

    def run(**inputs):
        nonlocal compiled
        if max(path.length for path in shape.paths) > LONGEST_COMPILED:
            raise Unavailable(f"compiled for at most {LONGEST_COMPILED} tokens: the loop over chunks is unrolled")
        if compiled is None:
            torch._dynamo.reset()
            compiled = torch.compile(plain, dynamic=False)
        return compiled([path.offsets(inputs["zxbcdt"].device) for path in shape.paths], **inputs)

    return run


def _in_scan_order(
    shape: Shape, inputs: dict[str, Tensor], mix: Callable[[Tensor], Tensor], bidirectional: bool
) -> tuple[Tensor, ...]:
    """What a library that knows plain sequences needs around it: copies there, the two directions added back."""
    rows, found = inputs["zxbcdt"], []
    for path in shape.paths:
        there, back = scan_orders(path, bidirectional, rows.device)
        gathered = rows.index_select(1, there)
        y = mix(gathered.view(-1, path.length, rows.shape[-1])).reshape(*gathered.shape[:2], -1)
        found.append(functools.reduce(torch.add, (y.index_select(1, order) for order in back)))
    return tuple(found)


def _mamba_ssm(shape: Shape, bidirectional: bool = True, **inputs) -> tuple[Tensor, ...]:
    combined = imported("mamba_ssm.ops.triton.ssd_combined").mamba_split_conv1d_scan_combined
    imported("causal_conv1d")

    def mix(rows):
        # Its convolution wants filters in the type of the rows.
        filters = (inputs[name].to(rows.dtype) for name in ("conv_weight", "conv_bias"))
        return combined(
            *(rows, *filters, inputs["dt_bias"], inputs["A"], inputs["D"], LIBRARY_CHUNK),
            rmsnorm_weight=inputs["norm_weight"],
            rmsnorm_eps=1e-5,
            headdim=shape.scale.head_dim,
            ngroups=1,
            norm_before_gate=False,
        )

    return _in_scan_order(shape, inputs, mix, bidirectional)


def _fla(shape: Shape, bidirectional: bool = True, **inputs) -> tuple[Tensor, ...]:
    """flash-linear-attention: with one decay a head its gated linear attention is this scan, q = C, k = B, v = dt x."""
    attention = imported("fla.ops.simple_gla").chunk_simple_gla
    scale = shape.scale

    def mix(rows):
        z, mixed, raw = rows.split((scale.width, scale.mixed, scale.heads), dim=-1)
        filters = (inputs[name].to(rows.dtype) for name in ("conv_weight", "conv_bias"))
        weight, bias = filters
        padded = F.pad(mixed.transpose(1, 2), (weight.shape[1] - 1, 0))
        mixed = F.silu(F.conv1d(padded, weight[:, None], bias, groups=scale.mixed)).transpose(1, 2)
        x, B, C = mixed.split((scale.width, scale.state, scale.state), dim=-1)
        step = F.softplus(raw.float() + inputs["dt_bias"])
        x = x.unflatten(-1, (scale.heads, scale.head_dim))
        B, C = (t[:, :, None].expand(-1, -1, scale.heads, -1).contiguous() for t in (B, C))
        y = attention(C, B, (x * step[..., None]).to(x.dtype), g=step * inputs["A"], scale=1.0)[0]
        y = (y + x * inputs["D"].to(x.dtype)[:, None]).flatten(-2) * F.silu(z)
        return F.rms_norm(y, (scale.width,), inputs["norm_weight"].to(y.dtype), 1e-5)

    return _in_scan_order(shape, inputs, mix, bidirectional)


@functools.cache
def imported(name: str):
    """A module of another library. Raises Unavailable, with the reason, where it does not import."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # libraries with compiled parts fail in many ways
        raise Unavailable(f"{name.split('.')[0]} does not import: {error}") from error


PEERS = {"mamba_ssm": _mamba_ssm, "fla": _fla}


def on_gpus(call: Call, *libraries: str) -> Call:
    """`call`, which needs these libraries and a GPU; raises Unavailable, with the reason, without them."""

    def run(**inputs):
        for name in libraries:
            imported(name)
        if inputs_on_cpu(inputs):
            raise Unavailable(f"{libraries[0]} runs on GPUs only")
        return call(**inputs)

    return run


def path_scan_peers(shape: Shape, bidirectional: bool) -> tuple[Variant, ...]:
    """Other libraries for the one path of `shape`, as variants of a case."""
    libraries = {"mamba_ssm": ("mamba_ssm", "causal_conv1d"), "fla": ("fla",)}

    def one_output(call: Call, **inputs) -> Tensor:
        return call(shape, bidirectional, **inputs)[0]

    return tuple(
        Variant(name, on_gpus(functools.partial(one_output, call), *libraries[name])) for name, call in PEERS.items()
    )
