"""The oracle of the scans: one step of time after another, as the recurrence is written. Slow and plain on purpose."""

import torch
import torch.nn.functional as F


def recurrence(x, dt, A, B, C, initial_states=None):
    """x (n, l, h, p), dt (n, l, h), A (h), B and C (n, l, g, s) -> y (n, l, h, p), final states (n, h, p, s)."""
    n, length, heads, head_dim = x.shape
    per_group = heads // B.shape[2]
    state = x.new_zeros(n, heads, head_dim, B.shape[3]) if initial_states is None else initial_states
    outputs = []
    for t in range(length):
        b, c = (m[:, t].repeat_interleave(per_group, dim=1) for m in (B, C))
        kept = torch.exp(dt[:, t] * A)[:, :, None, None]
        state = kept * state + dt[:, t, :, None, None] * x[:, t, :, :, None] * b[:, :, None, :]
        outputs.append((state * c[:, :, None, :]).sum(-1))
    return torch.stack(outputs, dim=1), state


def mixer(
    rows, conv_weight, conv_bias, dt_bias, A, D, norm_weight, *, head_dim, groups, eps=1e-5, norm_group_size=None
):
    """One direction of the mixer on plain sequences: rows (n, l, 2E + 2GN + nh) -> (n, l, E)."""
    width, taps = norm_weight.shape[0], conv_weight.shape[1]
    heads, state = width // head_dim, (conv_weight.shape[0] - width) // (2 * groups)
    z, xbc, dt = rows.split((width, conv_weight.shape[0], heads), dim=-1)
    mixed = []
    for t in range(rows.shape[1]):
        seen = [xbc[:, t - back] * conv_weight[:, taps - 1 - back] for back in range(taps) if t - back >= 0]
        mixed.append(F.silu(sum(seen) + (0 if conv_bias is None else conv_bias)))
    x, B, C = torch.stack(mixed, dim=1).split((width, groups * state, groups * state), dim=-1)
    x = x.unflatten(-1, (heads, head_dim))
    y, _ = recurrence(
        x, F.softplus(dt + dt_bias), A, B.unflatten(-1, (groups, state)), C.unflatten(-1, (groups, state))
    )
    gated = (y + x * D[:, None]).flatten(-2) * F.silu(z)
    parts = gated.split(norm_group_size or width, dim=-1)
    return torch.cat([p / torch.sqrt(p.square().mean(-1, keepdim=True) + eps) for p in parts], dim=-1) * norm_weight


def mixer_along(path, rows, *parameters, bidirectional=True, **settings):
    """The mixer along a path, token by token: rows (B, T, channels) -> (B, T, E)."""
    total = 0
    for tokens in path.tokens():
        for order in (tokens, tokens.flip(0)) if bidirectional else (tokens,):
            out = mixer(rows[:, order], *parameters, **settings)
            total = total + torch.zeros(*rows.shape[:2], out.shape[-1], dtype=out.dtype).index_copy(1, order, out)
    return total


def mixer_inputs(batch, tokens, width, head_dim, state, groups=1, taps=4, dtype=torch.float64, seed=0):
    """Random arguments of the mixer, in the order of `path_scan`, each asking for its gradient."""
    made = torch.Generator().manual_seed(seed)
    heads, mixed = width // head_dim, width + 2 * groups * state

    def normal(*shape):
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    values = (
        normal(batch, tokens, width + mixed + heads),
        normal(mixed, taps) * 0.4,
        normal(mixed) * 0.1,
        normal(heads) - 1,
        -torch.rand(heads, generator=made, dtype=torch.float64) - 0.1,
        normal(heads),
        1 + 0.1 * normal(width),
    )
    return [value.to(dtype).requires_grad_() for value in values]


def relative_error(got, wanted):
    """Relative root mean square error, in float64."""
    got, wanted = got.detach().double(), wanted.detach().double()
    return ((got - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()
