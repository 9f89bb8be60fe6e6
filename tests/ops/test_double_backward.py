"""An operator's gradient has none itself, which asking for it must tell; whatever stops short of asking works."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from medsora_ops import focal_frequency_loss, native, spectral_filter, ssd_scan, use_backend

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

MADE = torch.Generator().manual_seed(0)
X, WEIGHT = (torch.randn(1, 2, 6, 8, generator=MADE), torch.randn(2, 6, 5, generator=MADE, dtype=torch.complex64))


def filtered(x):
    return spectral_filter(x, WEIGHT)


def lost(x):
    return focal_frequency_loss(x, X * 0.5)


def scanned(x):
    steps, states = torch.full((2, 6, 1), 0.1), torch.ones(2, 6, 1, 8)
    return ssd_scan(x.view(2, 6, 1, 8), steps, -torch.ones(1), states, states)


@pytest.fixture(params=[filtered, lost, scanned])
def operator(request):
    with use_backend("native"):
        yield request.param


def test_a_second_derivative_is_refused(operator):
    """By what was saved, also where a constant came in, and by what came in."""
    x, factor = X.clone().requires_grad_(), torch.tensor(2.0, requires_grad=True)
    (of_constant,) = torch.autograd.grad(operator(x).sum(), x, create_graph=True)
    (of_factor,) = torch.autograd.grad((operator(x) * factor).sum(), x, create_graph=True)
    for grad, wanted in ((of_constant, x), (of_factor, x), (of_factor, factor)):
        with pytest.raises(RuntimeError, match="cannot differentiate twice"):
            torch.autograd.grad(grad.square().sum(), wanted, retain_graph=True)


def test_a_graph_that_nobody_differentiates_changes_nothing(operator):
    """Within non-reentrant checkpointing, with a hook that works in place."""
    x = X.clone().requires_grad_()
    (plain,) = torch.autograd.grad(operator(x).sum(), x)
    checkpointed = checkpoint(operator, x, use_reentrant=False)
    x.register_hook(lambda grad: grad.mul_(2))
    (grad,) = torch.autograd.grad(checkpointed.sum(), x, create_graph=True)
    assert torch.equal(grad, 2 * plain) and grad.requires_grad
    assert torch.equal(grad.mul_(2), 4 * plain)
