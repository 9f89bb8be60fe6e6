"""The description of flow on the token grid, the targets of a clip, and the losses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

from medsora.alignment import (
    AlignmentProjector,
    AlignmentSettings,
    alignment_loss,
    alignment_pairs,
    alignment_targets,
    flow_image,
    latent_flows,
    released_alignment_loss,
)
from medsora.alignment.loss import pearson
from medsora.alignment.representation import RADII, STATISTICS, encoder_features, flow_statistics

GOLDEN = Path(__file__).parent / "golden"


# --- statistics ---


def field(u, v, height=48, width=64):
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = u(x - 31.5, y - 23.5), v(x - 31.5, y - 23.5)
    return np.stack(np.broadcast_arrays(u, v), -1)[None].astype(np.float32) + np.zeros(
        (1, height, width, 1), np.float32
    )


def channel(statistics, name):
    return statistics[..., STATISTICS.index(name)]


@pytest.mark.parametrize(
    "u, v, expected",
    [
        (lambda x, y: 2 + 0 * x, lambda x, y: -1 + 0 * x, {"mean u": 2, "mean v": -1, "mean length": 5**0.5}),
        (lambda x, y: -0.1 * y, lambda x, y: 0.1 * x, {"curl": 1.6, "du/dy": -0.8, "dv/dx": 0.8}),  # a rotation
        (lambda x, y: 0.1 * x, lambda x, y: 0.1 * y, {"divergence": 1.6, "du/dx": 0.8, "dv/dy": 0.8}),  # a zoom
        (lambda x, y: 0.1 * x, lambda x, y: -0.1 * y, {"stretch": 1.6, "du/dx": 0.8, "dv/dy": -0.8}),
        (lambda x, y: 0.1 * y, lambda x, y: 0.1 * x, {"shear": 1.6, "du/dy": 0.8, "dv/dx": 0.8}),
    ],
)
def test_statistics_measure_what_they_are_called(u, v, expected):
    """On tokens of 8 x 8 pixels: derivatives count the change across a token."""
    statistics = flow_statistics(field(u, v), (6, 8))
    assert statistics.shape == (len(RADII), 1, 48, len(STATISTICS)) and statistics.dtype == torch.float32
    for name, value in expected.items():
        torch.testing.assert_close(channel(statistics, name), torch.full((3, 1, 48), float(value)), rtol=0, atol=1e-4)
    for name in {"divergence", "curl", "stretch", "shear", "du/dx", "du/dy", "dv/dx", "dv/dy"} - set(expected):
        assert channel(statistics, name).abs().max() < 1e-4, name


def test_deviation_and_scales_against_numpy():
    flows = np.random.default_rng(0).standard_normal((2, 24, 32, 2)).astype(np.float32)
    statistics = flow_statistics(flows, (6, 8)).view(3, 2, 6, 8, -1)
    patch = flows[1, 8:12, 12:16]  # token (2, 3)
    assert channel(statistics[0], "deviation of u")[1, 2, 3].item() == pytest.approx(patch[..., 0].std(), rel=1e-4)
    neighbourhood = flows[1, 4:16, 8:20]  # one token more on every side
    assert channel(statistics[1], "mean v")[1, 2, 3].item() == pytest.approx(neighbourhood[..., 1].mean(), rel=1e-4)
    assert channel(statistics[1], "deviation of v")[1, 2, 3].item() == pytest.approx(
        neighbourhood[..., 1].std(), rel=1e-4
    )
    corner = flows[0, :12, :12]  # the widest scale, cut off at the rim
    assert channel(statistics[2], "mean u")[0, 0, 0].item() == pytest.approx(corner[..., 0].mean(), rel=1e-4)


@pytest.mark.parametrize("grid", [(1, 1), (5, 7), (48, 64)])
def test_statistics_on_any_grid(grid):
    statistics = flow_statistics(field(lambda x, y: x, lambda x, y: y), grid)
    assert statistics.shape == (3, 1, grid[0] * grid[1], len(STATISTICS)) and statistics.isfinite().all()


# --- image encoder ---


@pytest.fixture(scope="module", params=["vit", "dinov2"])
def encoder_folder(request, tmp_path_factory):
    """A small encoder of random weights, saved as a user's weights would be."""
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    sizes = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=8)
    torch.manual_seed(0)
    if request.param == "vit":
        model = ViTModel(ViTConfig(**sizes, intermediate_size=32), add_pooling_layer=False)
    else:
        model = Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return str(folder)


def test_encoder_features_are_its_layers_patches_in_place(encoder_folder):
    flows = np.concatenate([field(lambda x, y: x, lambda x, y: y)] * 2)
    flows[1, :, :32] = 0
    features = encoder_features(flows, (8, 8), encoder_folder, image_size=64)
    assert features.shape == (3, 2, 64, 16) and features.isfinite().all()

    from transformers import AutoModel

    model = AutoModel.from_pretrained(encoder_folder).eval()
    picture = torch.nn.functional.interpolate(
        torch.from_numpy(flow_image(flows)).permute(0, 3, 1, 2), size=(64, 64), mode="bilinear", antialias=True
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        states = model((picture - mean.view(3, 1, 1)) / std.view(3, 1, 1), output_hidden_states=True).hidden_states
    for layer in range(3):  # 1 class token, then the 8 x 8 patches in raster order
        torch.testing.assert_close(features[layer], states[layer + 1][:, 1:])


def test_encoder_takes_other_picture_and_grid_sizes(encoder_folder):
    flows = field(lambda x, y: x, lambda x, y: y)
    assert encoder_features(flows, (4, 6), encoder_folder, image_size=96).shape == (3, 1, 24, 16)


def test_weights_that_are_not_there_or_do_not_fit_are_errors(tmp_path, encoder_folder):
    flows = field(lambda x, y: x, lambda x, y: y)
    with pytest.raises(ValueError, match="representation_weights: cannot load"):
        encoder_features(flows, (4, 4), str(tmp_path / "nothing"))
    weights = load_file(Path(encoder_folder) / "model.safetensors")
    weights.pop(next(name for name in weights if "attention" in name))
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((Path(encoder_folder) / "config.json").read_text())
    with pytest.raises(ValueError, match="does not fit its model"):
        encoder_features(flows, (4, 4), str(tmp_path))


# --- targets ---


@pytest.mark.parametrize(
    "frames, latents, owned",
    [
        (8, 2, [(0, 4), (4, 7)]),
        (9, 2, [(0, 4), (4, 8)]),  # a frame more, for the flow of the last one
        (9, 3, [(0, 1), (1, 5), (5, 8)]),
        (10, 3, [(0, 1), (1, 5), (5, 9)]),
        (16, 4, [(0, 4), (4, 8), (8, 12), (12, 15)]),
        (17, 5, [(0, 1), (1, 5), (5, 9), (9, 13), (13, 16)]),
        (1, 1, []),
    ],
)
def test_each_latent_averages_the_flows_of_its_own_frames(frames, latents, owned):
    assert latent_flows(frames, latents) == owned


@pytest.mark.parametrize("frames, latents", [(7, 2), (12, 2), (8, 3), (16, 5), (5, 0)])
def test_frames_that_do_not_make_these_latents_are_refused(frames, latents):
    with pytest.raises(ValueError, match=f"frames: got {frames} for {latents} latent frames"):
        latent_flows(frames, latents)


def moving_clip(frames=8):
    """A clip whose left half stands still and whose right half moves right, faster in its second half of time."""
    picture = gaussian_filter(np.random.default_rng(1).standard_normal((64, 160)), 2.5)
    picture = ((picture - picture.min()) / np.ptp(picture) * 255).astype(np.uint8)
    clip = []
    place = 0
    for k in range(frames):
        place += 1 if k <= frames // 2 else 3
        frame = picture[:, 60:124].copy()
        frame[:, 32:] = picture[:, 92 - place : 124 - place]
        clip.append(np.repeat(frame[..., None], 3, -1))
    return np.stack(clip)


def test_targets_follow_motion_in_space_and_time():
    targets = alignment_targets(moving_clip(), 2, (8, 8))
    target, mask = targets["target"], targets["mask"].view(2, 8, 8)
    assert target.shape == (3, 2, 64, len(STATISTICS)) and target.dtype == torch.float32 and target.isfinite().all()
    assert mask.dtype == torch.bool and not mask[:, :, :2].any() and mask[:, 1:7, 5:7].all()
    speed = channel(target[0], "mean u").view(2, 8, 8)[:, 2:6, 5:7].mean((1, 2))
    assert speed[0].item() == pytest.approx(1, abs=0.3) and speed[1].item() == pytest.approx(3, abs=0.5)


def test_targets_by_encoder_have_its_layers(encoder_folder):
    settings = AlignmentSettings(
        representation="dino", representation_weights=encoder_folder, representation_size=64, motionless=0.0
    )
    targets = alignment_targets(moving_clip(9), 3, (4, 4), settings)
    assert targets["target"].shape == (3, 3, 16, 16) and targets["mask"].all()
    assert alignment_targets(moving_clip(9)[:1], 1, (4, 4), settings)["target"].shape == (3, 1, 16, 16)


def test_an_image_has_an_empty_mask_and_no_representation_has_no_target():
    image = alignment_targets(moving_clip()[:1], 1, (8, 8))
    assert image["target"].shape == (3, 1, 64, len(STATISTICS)) and not image["mask"].any()
    assert alignment_targets(moving_clip(), 2, (8, 8), AlignmentSettings(representation="none")) is None


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"flow": "farneback"}, "flow: got 'farneback'"),
        ({"representation": "clip"}, "representation: got 'clip'"),
        ({"representation": "dino"}, "representation_weights: got none"),
        ({"flow": "raft"}, "flow_weights: got none"),
        ({"representation_size": 0}, "representation_size: got 0"),
        ({"weight": -0.1}, "weight: got -0.1"),
        ({"motionless": -1.0}, "motionless: got -1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        AlignmentSettings(**wrong)


# --- losses ---


def test_pairs():
    assert alignment_pairs(4, 1) == [(2, 0)] and alignment_pairs(5, 1) == [(2, 0)] and alignment_pairs(1, 1) == [(0, 0)]
    assert alignment_pairs(3, 3) == [(0, 0), (1, 1), (2, 2)]
    assert [layer for _, layer in alignment_pairs(8, 12)] == [0, 2, 3, 4, 6, 8, 9, 10]  # Python rounds halves to even
    assert [layer for _, layer in alignment_pairs(7, 3)] == [0, 0, 0, 1, 1, 2, 2]
    assert [layer for _, layer in alignment_pairs(6, 4)] == [0, 0, 1, 2, 2, 3]
    for depth in range(1, 50):
        for layers in range(1, 50):
            assert all(0 <= b < depth and 0 <= layer < layers for b, layer in alignment_pairs(depth, layers))
    with pytest.raises(ValueError, match="depth, layers: got 0 and 3"):
        alignment_pairs(0, 3)


def problem(depth=4, layers=3, batch=2, frames=2, tokens=9, width=16, channels=5):
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(batch, frames, tokens, width, generator=generator).requires_grad_() for _ in range(depth)]
    target = torch.randn(batch, layers, frames, tokens, channels, generator=generator)
    mask = torch.rand(batch, frames, tokens, generator=generator) > 0.3
    torch.manual_seed(1)
    return hidden, target, mask, AlignmentProjector(width, channels, alignment_pairs(depth, layers))


def test_the_loss_is_one_minus_pearson_over_moving_tokens():
    hidden, target, mask, projector = problem()
    loss = alignment_loss(hidden, target, mask, projector)
    assert loss.shape == (2,) and loss.dtype == torch.float32
    projected = projector(hidden)
    for sample in range(2):
        terms = []
        for i, (_, layer) in enumerate(projector.pairs):
            moving = mask[sample].numpy()
            ours = projected[i][sample].detach().numpy()[moving]
            wanted = target[sample, layer].numpy()[moving]
            terms.append(np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(ours, wanted, strict=True)]))
        assert loss[sample].item() == pytest.approx(np.mean(terms), abs=2e-3)  # the floor under the variance


def test_masked_tokens_have_no_say_and_no_gradient():
    hidden, target, mask, projector = problem()
    loss = alignment_loss(hidden, target, mask, projector)
    changed = torch.where(mask[:, None, ..., None], target, 7.0)
    torch.testing.assert_close(alignment_loss(hidden, changed, mask, projector), loss)
    loss.sum().backward()
    for tokens in hidden:
        assert tokens.grad[~mask].abs().max() == 0 and tokens.grad[mask].abs().max() > 0
    assert all(p.grad.abs().max() > 0 for p in projector.parameters())


def test_nothing_moving_costs_nothing():
    hidden, target, mask, projector = problem(frames=1)
    mask[0] = False
    target[0] = 0
    loss = alignment_loss(hidden, target, mask, projector)
    loss.sum().backward()
    assert loss[0] == 0 and loss[1] > 0
    assert all(tokens.grad[0].abs().max() == 0 and tokens.grad.isfinite().all() for tokens in hidden)


def test_constant_tokens_do_not_divide_by_zero():
    x = torch.zeros(3, 5, requires_grad=True)
    correlation = pearson(x, torch.ones(3, 5))
    correlation.sum().backward()
    assert correlation.abs().max() == 0 and x.grad.isfinite().all()


def test_pearson_passes_gradcheck():
    x, y = (torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(pearson, (x, y))


def test_one_layer_reads_the_middle_block_alone():
    hidden, target, mask, projector = problem(depth=4, layers=1)
    alignment_loss(hidden, target, mask, projector).sum().backward()
    assert [tokens.grad is not None for tokens in hidden] == [False, False, True, False]


def test_training_lowers_the_loss_towards_a_target_that_tokens_determine():
    hidden, _, mask, projector = problem(depth=2, layers=1, tokens=32)
    target = (hidden[1].detach() @ torch.randn(16, 5, generator=torch.Generator().manual_seed(3)))[:, None]
    optimiser = torch.optim.Adam(projector.parameters(), 3e-3)
    first = alignment_loss(hidden, target, mask, projector).mean().item()
    for _ in range(150):
        loss = alignment_loss(hidden, target, mask, projector).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert first > 0.8 and loss.item() < 0.1


def test_bfloat16_tokens_are_compared_in_float32():
    hidden, target, mask, projector = problem()
    exact = alignment_loss(hidden, target, mask, projector)
    with torch.autocast("cpu", torch.bfloat16):
        rough = alignment_loss([h.bfloat16() for h in hidden], target.half(), mask, projector)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t, m: (t[:, :2], m), r"target: got shape .*, wants \(2, 3 layers or more, 2, 9, channels\)"),
        (lambda t, m: (t[:, :, :, :8], m), "target: got shape"),
        (lambda t, m: (t[0], m), "target: got shape"),
        (lambda t, m: (t[..., :4], m), "target: got 4 channels, wants 5"),
        (lambda t, m: (t, m[0]), "mask: got shape"),
    ],
)
def test_targets_that_do_not_fit_the_tokens_are_refused(change, message):
    hidden, target, mask, projector = problem()
    with pytest.raises(ValueError, match=message):
        alignment_loss(hidden, *change(target, mask), projector)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", ["alignment", "alignment_fewer_blocks", "alignment_more_blocks"])
def test_the_released_term_agrees(name, dtype, tolerance):
    tensors = {key: value.to(dtype) for key, value in load_file(GOLDEN / f"{name}.safetensors").items()}

    def numbered(kind):
        return [tensors[f"{kind}.{i}"] for i in range(sum(key.startswith(f"{kind}.") for key in tensors))]

    tokens = [token.requires_grad_() for token in numbered("token")]
    loss = released_alignment_loss(numbered("feature"), tokens)
    loss.backward()
    assert loss.item() == pytest.approx(tensors["loss"].item(), rel=tolerance)
    for token, gradient in zip(tokens, numbered("grad"), strict=True):
        assert ((token.grad - gradient).norm() / gradient.norm()).item() < tolerance
