"""One call of `path_scan`, on the kernels and by its float64 definition, and how far apart they may be."""

import functools
from dataclasses import dataclass

import torch
from recurrence import mixer_inputs, relative_error

from medsora_ops import ScanPath, path_scan, use_backend
from medsora_ops.scan import reference

NAMES = ("zxbcdt", "conv_weight", "conv_bias", "dt_bias", "A", "D", "norm_weight")
ONE_A_HEAD = ("dt_bias", "A", "D")

# Relative rms errors that values and gradients may have, and gradients of one number a head, which are sums over all
# tokens with cancellation. Half types round the operands of matrix products, 11 and 8 bits; in the interpreter bfloat16
# is cut off, not rounded. float32 is three tf32 products on a GPU.
ALLOWED = {torch.float32: (5e-6, 5e-5), torch.float16: (2e-3, 2e-2), torch.bfloat16: (2.5e-2, 0.15)}


@dataclass(frozen=True)
class Case:
    kinds: tuple[str, ...] = ("fw",)
    grid: tuple[int, int, int] = (2, 3, 5)
    batch: int = 1
    heads: int = 2
    head_dim: int = 16
    state: int = 16
    groups: int = 1
    taps: int = 4
    norm_groups: int = 1
    bias: bool = True
    bidirectional: bool = True
    dtype: torch.dtype = torch.float32
    parameters: torch.dtype | None = None
    seed: int = 0

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @functools.cached_property  # with the tables that they keep on the device
    def paths(self) -> tuple[ScanPath, ...]:
        made = torch.Generator().manual_seed(self.seed + 2)
        return tuple(self._path(kind, made) for kind in self.kinds)

    def _path(self, kind, made):
        if kind in ("temporal", "raster"):
            return getattr(ScanPath, kind)(self.grid)
        frames, height, width = self.grid
        cells = {"fw": frames * width, "fh": frames * height, "hw": height * width}[kind]
        return ScanPath.plane(kind, self.grid, torch.randperm(cells, generator=made))

    @property
    def settings(self) -> dict:
        return dict(
            head_dim=self.head_dim,
            groups=self.groups,
            bidirectional=self.bidirectional,
            eps=1e-2,
            norm_group_size=self.width // self.norm_groups,
        )

    def tensors(self, device):
        """The seven tensors of `path_scan`, and a gradient for each output."""
        frames, height, width = self.grid
        tokens = frames * height * width
        sizes = (self.batch, tokens, self.width, self.head_dim, self.state, self.groups, self.taps)
        rows, *parameters = (t.detach() for t in mixer_inputs(*sizes, seed=self.seed))
        if not self.bias:
            parameters[1] = None
        made = torch.Generator().manual_seed(self.seed + 1)
        grads = [torch.randn(self.batch, tokens, self.width, generator=made) for _ in self.kinds]
        kind = self.parameters or self.dtype
        parameters = [None if p is None else p.to(device, kind) for p in parameters]
        return [rows.to(device, self.dtype), *parameters], [grad.to(device, self.dtype) for grad in grads]


def run(case, tensors, grads, backend="triton"):
    """Outputs, and the gradients of the tensors that are not None."""
    tensors = [None if t is None else t.detach().requires_grad_() for t in tensors]
    with use_backend(backend):
        outputs = path_scan(*tensors, case.paths, **case.settings)
        found = torch.autograd.grad(outputs, [t for t in tensors if t is not None], grads)
    return [o.detach() for o in outputs], found


def wanted(case, tensors, grads):
    tensors = [None if t is None else t.detach().double().cpu().requires_grad_() for t in tensors]
    tables = [path.offsets(torch.device("cpu")) for path in case.paths]
    outputs = reference.path_scan(*tensors, tables, [p.stride for p in case.paths], *case.settings.values())
    grads = [grad.double().cpu() for grad in grads]
    return outputs, torch.autograd.grad(outputs, [t for t in tensors if t is not None], grads)


def check(case, device, tensors=None, grads=None):
    """Values and every gradient against float64, the same bits twice."""
    if tensors is None:
        tensors, grads = case.tensors(device)
    outputs, found = run(case, tensors, grads)
    compare(case, tensors, grads, outputs, found)
    again, found_again = run(case, tensors, grads)
    for first, second in zip((*outputs, *found), (*again, *found_again), strict=True):
        assert torch.equal(first, second)


def compare(case, tensors, grads, outputs, found):
    right, right_grads = wanted(case, tensors, grads)
    values, sums = ALLOWED[case.dtype]
    for out, true in zip(outputs, right, strict=True):
        assert out.dtype == case.dtype and relative_error(out.cpu(), true) < values
    given = [(name, t) for name, t in zip(NAMES, tensors, strict=True) if t is not None]
    for (name, tensor), grad, true in zip(given, found, right_grads, strict=True):
        assert grad.dtype == tensor.dtype and grad.shape == tensor.shape
        error, allowed = relative_error(grad.cpu(), true), sums if name in ONE_A_HEAD else 2 * values
        assert error < allowed, f"{name}: {error:.2e}"
