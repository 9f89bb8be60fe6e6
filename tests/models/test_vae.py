"""The video VAE: its backbone under fresh compensation, frame rules, chunks and tiles, saving and loading."""

import copy
import inspect
import json

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file, save_file

from medsora.models import FrequencyCompensatedVAE

MICRO = dict(block_out_channels=(8, 8, 16), latent_channels=4, norm_num_groups=4, spectrum_grid=(4, 4), detail_bands=4)
KINDS = ["spectral", "conv", "none"]


def micro(**overrides):
    torch.manual_seed(0)
    return FrequencyCompensatedVAE.preset("tiny", **(MICRO | overrides)).eval()


def disturbed(**overrides):
    """A VAE whose compensation acts, as after training."""
    vae = micro(**overrides)
    with torch.no_grad():
        for parameter in vae.compensation_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vae


def clip(frames, batch=1, side=32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(batch, 3, frames, side, side, generator=generator, dtype=dtype) * 2 - 1


def plain(vae):
    """diffusers' own class with the settings and the backbone weights of `vae`, which has no unshuffle."""
    settings = {name: vae.config[name] for name in inspect.signature(AutoencoderKLCogVideoX).parameters}
    other = AutoencoderKLCogVideoX(**settings).eval()
    other.load_state_dict({k: v for k, v in vae.state_dict().items() if ".compensation." not in k})
    return other


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_fresh_compensation_reproduces_the_backbone_bit_for_bit(kind):
    vae = micro(compensation=kind, pixel_unshuffle=1)
    other = plain(vae)
    for frames in (1, 9, 16):
        x = clip(frames, batch=2)
        wanted = other.encode(x).latent_dist
        got = vae.encode(x).latent_dist
        assert torch.equal(got.parameters, wanted.parameters)
        assert torch.equal(vae.decode(got.mean).sample, other.decode(wanted.mean).sample)
        alone = vae.encode(x[:1]).latent_dist  # on a CPU summed in another order
        torch.testing.assert_close(alone.parameters, wanted.parameters[:1], rtol=1e-4, atol=1e-4)
        decoded = vae.decode(alone.mean).sample
        torch.testing.assert_close(decoded, other.decode(wanted.mean[:1]).sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["spectral", "conv"])
def test_every_compensation_block_acts_and_learns(kind):
    vae = disturbed(compensation=kind).train()
    names = {name.split(".compensation.")[0] for name, _ in vae.named_parameters() if ".compensation." in name}
    assert names == {"encoder.mid_block", "decoder.mid_block", *(f"decoder.up_blocks.{i}" for i in range(3))}
    vae(clip(8)).sample.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in vae.compensation_parameters() if p.ndim > 1)


def test_only_compensation_trains_over_a_frozen_backbone():
    vae = micro()
    vae.requires_grad_(False)
    for parameter in vae.compensation_parameters():
        parameter.requires_grad_(True)
    before = copy.deepcopy(vae.state_dict())
    x = clip(8)
    optimizer = torch.optim.Adam(vae.compensation_parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = (vae(x).sample - x).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    changed = {k for k, v in vae.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if ".compensation." in k}


@pytest.mark.parametrize("frames, latents", [(1, 1), (8, 2), (9, 3), (16, 4), (17, 5)])
@torch.no_grad()
def test_frame_counts(frames, latents):
    vae = micro()
    assert (vae.latent_frames(frames), vae.pixel_frames(latents)) == (latents, frames)
    posterior = vae.encode(clip(frames)).latent_dist
    assert posterior.mean.shape == (1, 4, latents, 4, 4)
    assert vae.decode(posterior.mean).sample.shape == (1, 3, frames, 32, 32)
    assert (vae.spatial_compression, vae.temporal_compression) == (8, 4)


@pytest.mark.parametrize("frames", [0, 2, 3, 7, 10, 12, 15, 18])
def test_other_frame_counts_are_refused(frames):
    vae = micro()
    with pytest.raises(ValueError, match=f"num_frames: got {frames}, wants 1, 8k or 8k \\+ 1 frames"):
        vae.latent_frames(frames)
    if frames:
        with pytest.raises(ValueError, match="num_frames"):
            vae.encode(clip(frames))


@torch.no_grad()
def test_inputs_that_do_not_fit_are_refused():
    vae = micro()
    for x, message in (
        (torch.zeros(1, 3, 8, 36, 32), "x: got frames of 36 x 32, wants multiples of 8"),
        (torch.zeros(1, 4, 8, 32, 32), r"x: got shape \(1, 4, 8, 32, 32\)"),
        (torch.zeros(3, 8, 32, 32), "x: got shape"),
    ):
        with pytest.raises(ValueError, match=message):
            vae.encode(x)
    with pytest.raises(ValueError, match=r"z: got shape \(1, 3, 2, 4, 4\)"):
        vae.decode(torch.zeros(1, 3, 2, 4, 4))
    with pytest.raises(ValueError, match="latent_frames: got 0"):
        vae.pixel_frames(0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"compensation": "wavelet"}, "compensation: got 'wavelet', wants one of spectral, conv, none"),
        ({"pixel_unshuffle": 0}, "pixel_unshuffle: got 0"),
        ({"temporal_compression_ratio": 2}, "temporal_compression_ratio"),
        ({"detail_bands": 1}, "detail_bands"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        micro(**settings)
    with pytest.raises(ValueError, match="preset: got 'huge', wants one of tiny, cogvideox"):
        FrequencyCompensatedVAE.preset("huge")


@pytest.mark.parametrize("kind", ["spectral", "conv"])
@torch.no_grad()
def test_chunks_hand_their_frames_on(kind):
    """The second chunk of a decoded clip depends on the first one's frames through the compensation alone."""
    vae = disturbed(compensation=kind).double()
    block = vae.decoder.up_blocks[0]
    kept = []
    block.register_forward_hook(lambda *call: kept.append(call[-1][1]["compensation"]))
    vae.decode(torch.randn(1, 4, 4, 4, 4, dtype=torch.float64))
    assert len(kept) == 2 and kept[0].shape[2] == 2
    hidden, temb, latent = torch.randn(1, 16, 4, 4, 4, dtype=torch.float64), None, torch.randn(1, 4, 4, 4, 4).double()
    fresh, cache = block(hidden[:, :, 2:], temb, latent[:, :, 2:], None)
    _, cache = block(hidden[:, :, :2], temb, latent[:, :, :2], None)
    backbone_only = {k: v for k, v in cache.items() if k != "compensation"}
    with_cache, _ = block(hidden[:, :, 2:], temb, latent[:, :, 2:], conv_cache=cache)
    without, _ = block(hidden[:, :, 2:], temb, latent[:, :, 2:], conv_cache=backbone_only)
    assert not torch.allclose(with_cache, without) and not torch.allclose(without, fresh)


@torch.no_grad()
def test_a_chunk_does_not_see_the_next():
    vae, x = disturbed(), clip(16)
    changed = x.clone()
    changed[:, :, 8:] = 0.0
    first, second = (vae.encode(clips).latent_dist.mean[:, :, :2] for clips in (x, changed))
    torch.testing.assert_close(first, second)


@torch.no_grad()
def test_slices_equal_the_batch():
    vae, x = disturbed(), clip(9, batch=2)
    wanted = vae(x).sample
    vae.enable_slicing()
    torch.testing.assert_close(vae(x).sample, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [1, 2])
@torch.no_grad()
def test_tiles(side):
    vae, x = disturbed(pixel_unshuffle=side), clip(9, side=64)
    whole = vae(x).sample
    vae.enable_tiling(tile_sample_min_height=128, tile_sample_min_width=128)
    torch.testing.assert_close(vae(x).sample, whole)  # smaller than one tile
    vae.enable_tiling(48, 48, 1 / 3, 1 / 3)
    assert vae.tile_sample_min_height == 48 // side and vae.tile_latent_min_height == 48 // vae.spatial_compression
    tiled = vae(x).sample
    assert tiled.shape == x.shape and tiled.isfinite().all() and not torch.equal(tiled, whole)


# sample side, pixel_unshuffle, arguments; then the tile and its overlap in latents
TILINGS = [
    (64, 2, (), 4, 1),
    (64, 1, (), 8, 2),
    (32, 2, (), 4, 1),
    (72, 1, (), 9, 2),
    (64, 2, (50, 50), 6, 2),
    (64, 2, (100, 100, 0.4, 0.4), 12, 5),
    (64, 2, (40, 40, 0.01, 0.01), 5, 1),
    (64, 2, (32, 32, 0.99, 0.99), 4, 3),
]


def let_latents_be_pixels(vae):
    """Replaces the networks by maps of one latent to equal pixels and back, so that only the tiling shows.

    Returns a list of the (height, width) of what the decoder is given, which grows with each call.
    """
    side, seen = vae.config.pixel_unshuffle, []
    inner, folded = vae.spatial_compression // side, 3 * side**2

    def decode(z, conv_cache=None):
        seen.append(tuple(z.shape[-2:]))
        pixels = z[:, :1].repeat_interleave(inner, dim=-2).repeat_interleave(inner, dim=-1)
        return pixels.repeat(1, folded, 1, 1, 1), None

    def encode(x, conv_cache=None):
        return x[:, :1, :, ::inner, ::inner].repeat(1, 2 * vae.config.latent_channels, 1, 1, 1), None

    vae.decoder.forward, vae.encoder.forward = decode, encode
    return seen


@pytest.mark.parametrize("sample, side, arguments, tile, overlap", TILINGS)
@torch.no_grad()
def test_tiles_meet(sample, side, arguments, tile, overlap):
    """No row or column is lost, doubled or moved, whatever the sizes round to."""
    vae = micro(sample_height=sample, sample_width=sample, pixel_unshuffle=side)
    vae.enable_tiling(*arguments)
    tiles = let_latents_be_pixels(vae)
    step, stride = vae.spatial_compression, tile - overlap
    for height, width in ((17, 14), (tile + 1, 2 * tile)):
        z = torch.arange(float(height * width)).view(1, 1, 1, height, width).repeat(1, 4, 1, 1, 1)
        tiles.clear()
        frames = vae.decode(z).sample
        assert len(tiles) == -(-height // stride) * -(-width // stride) and max(tiles) == (tile, tile)
        pixels = z[:, :1].repeat_interleave(step, dim=-2).repeat_interleave(step, dim=-1)
        torch.testing.assert_close(frames, pixels.repeat(1, 3, 1, 1, 1))
        torch.testing.assert_close(vae.encode(frames).latent_dist.mean, z)


@torch.no_grad()
def test_default_tiles_of_the_network_itself():
    vae, x = disturbed(), clip(9, side=80)
    whole = vae(x).sample
    vae.enable_tiling()
    tiled = vae(x).sample
    assert tiled.shape == x.shape and tiled.isfinite().all() and not torch.equal(tiled, whole)


@pytest.mark.parametrize(
    "arguments, words",
    [((0, None), "tile_sample_min_height: got 0"), ((None, None, None, 1.0), "tile_overlap_factor_width: got 1.0")],
)
def test_tiles_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        micro().enable_tiling(*arguments)


@torch.no_grad()
def test_unshuffle_is_undone():
    vae = micro(pixel_unshuffle=2)
    assert vae.config.in_channels == vae.config.out_channels == 3 and vae.config.sample_height == 64
    assert vae.encoder.conv_in.conv.in_channels == 12
    inner = []
    vae.encoder.conv_in.register_forward_pre_hook(lambda module, args: inner.append(args[0]))
    x = clip(1)
    vae.encode(x)
    (folded,) = inner
    assert torch.equal(folded[0, 1 * 4 + 2, 0, 5, 6], x[0, 1, 0, 2 * 5 + 1, 2 * 6])


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
@torch.no_grad()
def test_dtypes(dtype, bound):
    vae, x = disturbed(), clip(9)
    wanted = vae(x).sample
    got = vae.to(dtype)(x.to(dtype)).sample
    assert got.dtype == dtype
    assert (got.float() - wanted).norm() < bound * wanted.norm()


def test_bfloat16_autocast_trains():
    vae = disturbed().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = (vae(clip(8)).sample.float() - clip(8)).abs().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in vae.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in vae.compensation_parameters())


def test_gradient_checkpointing_changes_no_gradient():
    vae = disturbed().train()
    grads = []
    for enabled in (False, True):
        if enabled:
            vae.enable_gradient_checkpointing()
        vae.zero_grad()
        vae(clip(16)).sample.square().mean().backward()
        grads.append([p.grad.clone() for p in vae.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_save_and_load(kind, tmp_path):
    vae = disturbed(compensation=kind)
    vae.register_to_config(scaling_factor=0.7)
    vae.save_pretrained(tmp_path)
    assert (
        not list(tmp_path.glob("*.bin")) and json.loads((tmp_path / "config.json").read_text())["pixel_unshuffle"] == 2
    )
    again = FrequencyCompensatedVAE.from_pretrained(tmp_path)
    assert again.config.scaling_factor == 0.7 and again.config.compensation == kind
    for name, value in vae.config.items():
        if not name.startswith("_"):
            assert again.config[name] == (list(value) if isinstance(value, tuple) else value), name
    x = clip(9)
    assert torch.equal(again(x).sample, vae(x).sample)


def test_copies_are_independent():
    vae = disturbed()
    twin = copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in vae.compensation_parameters():
            parameter.zero_()
        x = clip(8)
        assert not torch.allclose(twin(x).sample, vae(x).sample)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_load_backbone(kind, tmp_path):
    other = plain(micro(compensation="none", pixel_unshuffle=1))
    other.save_pretrained(tmp_path)
    vae = FrequencyCompensatedVAE.load_backbone(str(tmp_path), compensation=kind)
    assert vae.config.compensation == kind and all(p.isfinite().all() and p.requires_grad for p in vae.parameters())
    x = clip(9, batch=2)
    assert torch.equal(vae(x).sample, other(x).sample)
    half = FrequencyCompensatedVAE.load_backbone(str(tmp_path), compensation=kind, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("damage", ["missing", "left over", "shape"])
def test_load_backbone_refuses_weights_that_do_not_fit(damage, tmp_path):
    plain(micro(compensation="none", pixel_unshuffle=1)).save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    if damage == "missing":
        del weights["encoder.mid_block.resnets.0.conv1.conv.weight"]
    elif damage == "left over":
        weights["encoder.attention.weight"] = torch.zeros(3)
    else:
        weights["encoder.conv_in.conv.bias"] = torch.zeros(5)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="path_or_name: the weights in .* are not those its config describes: 1 "):
        FrequencyCompensatedVAE.load_backbone(str(tmp_path))


def test_load_backbone_refuses_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="path_or_name: cannot load"):
        FrequencyCompensatedVAE.load_backbone(str(tmp_path / "nothing"))


def test_load_backbone_takes_no_other_setting():
    with pytest.raises(ValueError, match="pixel_unshuffle: got a value for pretrained weights"):
        FrequencyCompensatedVAE.load_backbone("anywhere", pixel_unshuffle=2)
