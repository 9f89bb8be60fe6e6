"""The public `path_scan` and `ssd_scan`: checks, registration with torch, and the choice of an implementation.

Implementations in the backend table are called with positional arguments, as
    path_scan   forward(zxbcdt, conv_weight, conv_bias or None, dt_bias, A, D, norm_weight, offsets [int32 (L)],
                        strides [int], head_dim, groups, bidirectional, eps, norm_group_size) -> [(B, T, E)]
    ssd_scan    forward(x, dt, A, B, C, D, z, dt_bias, initial_states (each or None), dt_softplus,
                        return_final_states) -> [y] or [y, final states]
and each backward(grads, the same arguments) -> the gradients of the tensors among them, in their order (without None
and without offsets). `supports` takes the arguments of forward. Results must not share memory with arguments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medsora_ops import backends, checks, dispatch
from medsora_ops.paths import ScanPath
from medsora_ops.scan import reference

_PATH_SCAN = (
    "Tensor zxbcdt, Tensor conv_weight, Tensor? conv_bias, Tensor dt_bias, Tensor A, Tensor D, Tensor norm_weight,"
    " Tensor[] offsets, int[] strides, int head_dim, int groups, bool bidirectional, float eps, int norm_group_size,"
    " str backend"
)
_SSD_SCAN = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, Tensor? initial_states,"
    " bool dt_softplus, bool return_final_states, str backend"
)
_LIBRARY = torch.library.Library("medsora_ops", "FRAGMENT")
for _name, _arguments in (("path_scan", _PATH_SCAN), ("ssd_scan", _SSD_SCAN)):
    _LIBRARY.define(f"{_name}({_arguments}) -> Tensor[]")
    _LIBRARY.define(f"{_name}_backward(Tensor[] grads, {_arguments}) -> Tensor[]")

backends.register("path_scan", "reference", reference.path_scan, reference.path_scan_backward)
backends.register("ssd_scan", "reference", reference.ssd_scan, reference.ssd_scan_backward)


def path_scan(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    path: ScanPath | tuple[ScanPath, ...],
    *,
    head_dim: int,
    groups: int = 1,
    bidirectional: bool = True,
    eps: float = 1e-5,
    norm_group_size: int | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """The Mamba-2 mixer between its two projections, along a path over a grid of tokens, both ways.

    For each direction: causal depthwise convolution of (x, B, C) along the path and SiLU; dt = softplus(dt + dt_bias);
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T, y_t = C_t h_t + D x_t; RMSNorm(y * silu(z)) * norm_weight. The
    directions are summed in grid order. (Dao and Gu, arXiv 2405.21060.)

    With width E, heads nh = E / head_dim, G groups and state size N:
    zxbcdt: (batch, F*H*W, 2E + 2GN + nh), split as z (E), x (E), B (G, N), C (G, N), dt (nh); any strides.
    conv_weight: (E + 2GN, taps); the last tap meets the token itself. conv_bias: (E + 2GN) or None.
    dt_bias, A (negative), D: (nh). norm_weight: (E). Parameters have zxbcdt's dtype or float32.
    path: a ScanPath over the grid (F, H, W), or a tuple of them: one output each from one zxbcdt.
    bidirectional: also scan each sequence from its end; forward only if False.
    eps: of the RMSNorm. norm_group_size: channels it runs over, all E if None; a divisor of E.
    Returns (batch, F*H*W, E) in zxbcdt's dtype and grid order; a tuple for a tuple of paths. Sums are in float32 at
    least. Differentiable once. Raises ValueError for arguments that do not fit each other.
    """
    paths = path if isinstance(path, tuple) else (path,)
    size = _check_path_scan(zxbcdt, conv_weight, conv_bias, dt_bias, A, D, norm_weight, paths, head_dim, groups)
    norm_group_size = size if norm_group_size is None else norm_group_size
    checks.divisor("norm_group_size", norm_group_size, size, "the width of norm_weight")
    tensors = (zxbcdt, conv_weight, conv_bias, dt_bias, A, D, norm_weight)
    tables, strides = [p.offsets(zxbcdt.device) for p in paths], [p.stride for p in paths]
    settings = (head_dim, groups, bool(bidirectional), float(eps), norm_group_size)
    outputs = dispatch.call("path_scan", *tensors, tables, strides, *settings)
    return tuple(outputs) if isinstance(path, tuple) else outputs[0]


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    seq_idx: None = None,
    cu_seqlens: None = None,
    dt_limit: tuple[float, float] | None = (0.0, math.inf),
) -> Tensor | tuple[Tensor, Tensor]:
    """The Mamba-2 scan of plain sequences, with the arguments and meaning of mamba_ssm's mamba_chunk_scan_combined.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T, y_t = (C_t h_t + D x_t) * silu(z_t). (arXiv 2405.21060.)

    x: (batch, length, heads, head_dim). dt: (batch, length, heads), to which dt_bias (heads) is added and, with
        dt_softplus, softplus applied. A: (heads), negative.
    B, C: (batch, length, groups, state), groups a divisor of heads. D: (heads) or (heads, head_dim). z: like x.
    initial_states: (batch, heads, head_dim, state), zeros if None.
    Every tensor has x's dtype or float32. Returns y like x; with return_final_states also the states after the last
    token, (batch, heads, head_dim, state) in float32 (float64 for float64 x). Differentiable once.
    seq_idx, cu_seqlens, dt_limit: not supported. Raises ValueError for them and for arguments that do not fit.
    """
    for name, value in (("seq_idx", seq_idx), ("cu_seqlens", cu_seqlens)):
        if value is not None:
            raise ValueError(f"{name}: got a {type(value).__name__}, wants None: not supported, batch equal lengths")
    if dt_limit not in (None, (0.0, math.inf), [0.0, math.inf]):
        raise ValueError(f"dt_limit: got {dt_limit!r}, wants (0.0, inf): not supported, clamp dt before the call")
    _check_ssd_scan(x, dt, A, B, C, D, z, dt_bias, initial_states)
    arguments = (x, dt, A, B, C, D, z, dt_bias, initial_states, bool(dt_softplus), bool(return_final_states))
    outputs = dispatch.call("ssd_scan", *arguments)
    return tuple(outputs) if return_final_states else outputs[0]


def _check_path_scan(zxbcdt, conv_weight, conv_bias, dt_bias, A, D, norm_weight, paths, head_dim, groups) -> int:
    """The width E, when everything fits."""
    checks.tensor("zxbcdt", zxbcdt, "(batch, tokens, 2E + 2GN + nh)")
    checks.tensor("norm_weight", norm_weight, "(E,)")
    width = norm_weight.shape[0]
    checks.divisor("head_dim", head_dim, width, "the width of norm_weight")
    heads = width // head_dim
    checks.divisor("groups", groups, heads, "the number of heads")
    checks.tensor("conv_weight", conv_weight, "(E + 2GN, taps)")
    mixed, taps = conv_weight.shape
    if taps < 1 or mixed <= width or (mixed - width) % (2 * groups):
        raise ValueError(
            f"conv_weight: got shape {tuple(conv_weight.shape)}, wants ({width} + 2 * {groups} * state size, taps)"
        )
    per_head = (("dt_bias", dt_bias), ("A", A), ("D", D))
    for name, value in per_head:
        checks.shape(name, value, (heads,), "(heads,)")
    if conv_bias is not None:
        checks.shape("conv_bias", conv_bias, (mixed,), "(E + 2GN,)")
    if zxbcdt.shape[2] != width + mixed + heads:
        raise ValueError(
            f"zxbcdt: got shape {tuple(zxbcdt.shape)}, wants {width + mixed + heads} channels:"
            f" z {width}, x {width}, B and C {mixed - width}, dt {heads}"
        )
    parameters = (*per_head, ("conv_weight", conv_weight), ("conv_bias", conv_bias), ("norm_weight", norm_weight))
    for name, value in parameters:
        if value is not None:
            checks.goes_with(name, value, "zxbcdt", zxbcdt, or_float32=True)
    if not paths:
        raise ValueError("path: got an empty tuple, wants at least one ScanPath")
    for path in paths:
        checks.path(path, "path", zxbcdt.shape[1], "zxbcdt")
    return width


def _check_ssd_scan(x, dt, A, B, C, D, z, dt_bias, initial_states) -> None:
    checks.tensor("x", x, "(batch, length, heads, head_dim)")
    batch, length, heads, head_dim = x.shape
    if 0 in (length, heads, head_dim):
        raise ValueError(f"x: got shape {tuple(x.shape)}, wants at least one token, head and channel")
    checks.tensor("B", B, "(batch, length, groups, state)")
    groups, state = B.shape[2:]
    checks.divisor("B's number of groups", groups, heads, "the number of heads")
    wanted = [
        ("dt", dt, (batch, length, heads), "(batch, length, heads)"),
        ("A", A, (heads,), "(heads,)"),
        ("B", B, (batch, length, groups, state), "(batch, length, groups, state)"),
        ("C", C, (batch, length, groups, state), "(batch, length, groups, state)"),
        ("z", z, tuple(x.shape), "(batch, length, heads, head_dim)"),
        ("dt_bias", dt_bias, (heads,), "(heads,)"),
        ("initial_states", initial_states, (batch, heads, head_dim, state), "(batch, heads, head_dim, state)"),
    ]
    if isinstance(D, Tensor) and D.dim() == 2:
        wanted.append(("D", D, (heads, head_dim), "(heads, head_dim)"))
    else:
        wanted.append(("D", D, (heads,), "(heads,)"))
    for name, value, sizes, dimensions in wanted:
        if value is not None or name in ("dt", "A", "B", "C"):
            checks.shape(name, value, sizes, dimensions)
            checks.goes_with(name, value, "x", x, or_float32=True)


for _operator in ("path_scan", "ssd_scan"):
    dispatch.implement(_LIBRARY, _operator)


@torch.library.register_fake("medsora_ops::path_scan", lib=_LIBRARY)
def _(zxbcdt, conv_weight, conv_bias, dt_bias, A, D, norm_weight, offsets, *settings):
    return [zxbcdt.new_empty((*zxbcdt.shape[:2], norm_weight.shape[0])) for _ in offsets]


@torch.library.register_fake("medsora_ops::path_scan_backward", lib=_LIBRARY)
def _(grads, *arguments):
    return [t.new_empty(t.shape) for t in arguments[:7] if t is not None]


@torch.library.register_fake("medsora_ops::ssd_scan", lib=_LIBRARY)
def _(x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, return_final_states, backend):
    batch, _, heads, head_dim = x.shape
    y = x.new_empty(x.shape)
    if not return_final_states:
        return [y]
    return [y, x.new_empty((batch, heads, head_dim, B.shape[3]), dtype=reference.sum_type(x))]


@torch.library.register_fake("medsora_ops::ssd_scan_backward", lib=_LIBRARY)
def _(grads, *arguments):
    return [t.new_empty(t.shape) for t in arguments[:9] if t is not None]


def _gradient(operator, tensors):
    """The two halves of an operator's autograd. It keeps its inputs only; backward computes the rest again."""

    def keep(ctx, inputs, output):
        tables = inputs[tensors] if operator == "path_scan" else []
        ctx.settings = inputs[tensors + 1 :] if operator == "path_scan" else inputs[tensors:]
        ctx.save_for_backward(*inputs[:tensors], *tables)

    def gradient(ctx, saved, grads):
        tables = [list(saved[tensors:])] if operator == "path_scan" else []
        found = iter(dispatch.backward(operator, grads, *saved[:tensors], *tables, *ctx.settings))
        of_tensors = [None if value is None else next(found) for value in saved[:tensors]]
        return (*of_tensors, *([None] * len(table) for table in tables), *(None for _ in ctx.settings))

    return gradient, keep


for _operator, _tensors in (("path_scan", 7), ("ssd_scan", 9)):
    dispatch.differentiate(_LIBRARY, _operator, *_gradient(_operator, _tensors))
