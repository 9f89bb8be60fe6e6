"""What the two stages draw and minimise, on a small prepared data set with labels."""

import numpy as np
import pytest
import torch

from medsora.alignment import AlignmentSettings
from medsora.data import FrameClips, LatentClips, PrepareSettings, prepare_frames, prepare_latents
from medsora.diffusion import DiffusionObjective
from medsora.errors import UserError
from medsora.files import replacing_folder
from medsora.training.denoiser_stage import (
    DenoiserTraining,
    LatentDraws,
    build_denoiser,
    build_projector,
    check_classes,
)
from medsora.training.draws import Part
from medsora.training.evaluation import DenoisingProbe, real_windows, reconstruct
from medsora.training.first_frames import first_frame_latents, given_counts
from medsora.training.settings import DenoiserSettings, EvaluationSettings, VAESettings
from medsora.training.vae_stage import build_vae, latent_shape, to_model_range, to_pixels, vae_task

SMALL_VAE = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "sample_height": 32, "sample_width": 32}
SMALL_DENOISER = {"patch_size": 1, "hidden_size": 64, "depth": 2, "state_size": 8, "head_dim": 32}
PREPARE = PrepareSettings(size=32, num_frames=8, windows_per_clip=3, images_per_clip=2, val_fraction=0.0)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return build_vae(VAESettings(model=SMALL_VAE)).eval()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, vae):
    folder = tmp_path_factory.mktemp("phantom")
    prepare_frames("builtin:phantom:3", folder, PREPARE, progress=False)
    prepare_latents(folder, vae, PREPARE, AlignmentSettings(), "cpu", progress=False, patch_size=1)
    return folder


@pytest.fixture(scope="module")
def clips(dataset):
    return LatentClips(dataset, "train")


def a_denoiser(classes=2, **options):
    return build_denoiser(DenoiserSettings(model=SMALL_DENOISER | options), 8, classes, seed=0)


def latent_draws(clips, settings=None, seed=0, **options):
    settings = settings or DenoiserSettings(batch_size=4, images_per_batch=4)
    return LatentDraws(clips, settings, a_denoiser().config, 2.0, 1000, seed, **options)


def test_the_batch_of_a_step_is_made_of_its_parts(clips):
    draw = latent_draws(clips)
    whole, halves = draw(5, Part()), [draw(5, Part(i, 2)) for i in range(2)]
    assert whole.keys() == halves[0].keys()
    assert {"video.target", "video.mask", "video.label", "image.latents"} <= whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, torch.cat([half[name] for half in halves])), name
    assert not torch.equal(whole["video.latents"], draw(6, Part())["video.latents"])
    assert not torch.equal(whole["video.noise"], latent_draws(clips, seed=1)(5, Part())["video.noise"])


def test_images_are_videos_of_one_frame_in_a_batch_of_their_own(clips):
    batch = latent_draws(clips)(0, Part())
    assert batch["video.latents"].shape == (4, 2, 8, 4, 4)
    assert batch["image.latents"].shape == (4, 1, 8, 4, 4)


def test_latents_are_the_scaled_posterior_of_a_cached_window(clips):
    means = torch.stack([clips.entry(i)["mean"].transpose(0, 1) for i in range(len(clips))])
    stds = torch.stack([clips.entry(i)["std"].transpose(0, 1) for i in range(len(clips))])
    latents = latent_draws(clips)(3, Part())["video.latents"] / 2.0
    scores = ((latents[:, None] - means) / stds).square().mean((2, 3, 4, 5))
    assert (scores.min(1).values < 1.6).all()  # a chi-square mean of about 1 against its own window


def test_labels_are_withheld_at_the_stated_rate(clips):
    settings = DenoiserSettings(batch_size=8, label_dropout=0.25)
    draw = latent_draws(clips, settings)
    labels = torch.cat([draw(step, Part())["video.label"] for step in range(60)])
    assert set(labels.tolist()) == {0, 1, 2}
    assert abs(float((labels == 2).float().mean()) - 0.25) < 0.08


def test_first_frames_lie_at_the_first_places_and_are_sometimes_withheld(clips, dataset, vae):
    given = first_frame_latents(dataset, clips, vae, [1])
    assert torch.equal(given[1], first_frame_latents(dataset, clips, vae, [1])[1])  # from the cache
    settings = DenoiserSettings(batch_size=8, first_frame_dropout=0.5)
    batch = latent_draws(clips, settings, first_frames=given)(0, Part())
    mask = batch["video.first_frames_mask"]
    assert mask[:, 1:].eq(0).all() and 0 < mask[:, 0].sum() < 8
    scaled = given[1][:, 0] * 2.0
    assert all(min(float((f[0] - g).abs().max()) for g in scaled) == 0 for f in batch["video.first_frames"])
    denoiser = a_denoiser(first_frame_conditioning=True)
    loss, _ = DenoiserTraining(denoiser, DiffusionObjective())(batch)
    assert torch.isfinite(loss)


def test_how_many_frames_are_given_is_drawn_for_each_sample(clips):
    """Where a window has more than a chunk of the VAE; the latents given tell themselves apart."""
    entries = len(clips)
    given = {1: torch.full((entries, 1, 8, 4, 4), 1.0), 8: torch.full((entries, 2, 8, 4, 4), 8.0)}
    draw = latent_draws(clips, DenoiserSettings(batch_size=8, first_frame_dropout=0.25), first_frames=given)
    batches = [draw(step, Part()) for step in range(40)]
    frames = torch.cat([batch["video.first_frames"] for batch in batches])[:, :, 0, 0, 0]
    mask = torch.cat([batch["video.first_frames_mask"] for batch in batches])
    one, eight = frames[:, 0] == 2.0, frames[:, 0] == 16.0
    assert (one | eight).all() and abs(float(eight.float().mean()) - 0.5) < 0.1
    assert torch.equal(frames[:, 1] == 16.0, eight) and frames[one][:, 1].eq(0).all()
    assert abs(float(mask[:, 0].mean()) - 0.75) < 0.08 and mask[one][:, 1].eq(0).all()
    assert torch.equal(mask[eight][:, 0], mask[eight][:, 1])  # withheld together
    halves = [draw(3, Part(i, 2))["video.first_frames"] for i in range(2)]
    assert torch.equal(batches[3]["video.first_frames"], torch.cat(halves))


def test_noise_on_given_frames_is_a_draw_of_its_own(clips):
    """Of the stated size, on the given places alone, the same whatever shares the batch; else all is as without."""
    given = {8: torch.zeros(len(clips), 2, 8, 4, 4)}
    plain, noised = (
        latent_draws(clips, DenoiserSettings(batch_size=8, first_frame_noise=level), first_frames=given)
        for level in (0.0, 0.3)
    )
    batches = [noised(step, Part()) for step in range(5)]
    noise = torch.cat([batch.pop("video.first_frames")[:, :2] for batch in batches])
    assert abs(float(noise.std()) - 0.3) < 0.01 and abs(float(noise.mean())) < 0.01
    assert len({float(sample.sum()) for sample in noise}) == len(noise) == 40
    without = plain(3, Part())
    assert without.pop("video.first_frames").eq(0).all()
    assert all(torch.equal(batches[3][name], tensor) for name, tensor in without.items())
    halves = torch.cat([noised(3, Part(i, 2))["video.first_frames"] for i in range(2)])
    assert torch.equal(halves[:, :2], noise[24:32]) and halves[:, 2:].eq(0).all()


@pytest.mark.parametrize(
    "num_frames, counts", [(8, [1]), (9, [1]), (16, [1, 8]), (17, [1, 9]), (24, [1, 8]), (25, [1, 9])]
)
def test_what_is_given_follows_the_window(num_frames, counts):
    assert given_counts(None, num_frames) == counts
    assert given_counts([1], num_frames) == [1]


@pytest.mark.parametrize("chosen, num_frames", [([8], 8), ([2], 16), ([], 16), ([1, 9], 9), ([1], 1), (None, 1)])
def test_given_frames_that_do_not_fit_are_told(chosen, num_frames):
    with pytest.raises(UserError, match=r"denoiser\.given_frames: got .* wants some of 1, 8 and 9, each fewer"):
        given_counts(chosen, num_frames)


def test_first_frames_of_other_windows_are_encoded_anew(dataset, vae):
    given, moved = first_frame_latents(dataset, LatentClips(dataset, "train"), vae, [1]), LatentClips(dataset, "train")
    for record in moved.index["clips"].values():
        record["starts"] = [start + 1 for start in record["starts"]]
    others = first_frame_latents(dataset, moved, vae, [1])
    assert others[1].shape == given[1].shape
    assert not any(torch.equal(a, b) for a, b in zip(given[1], others[1], strict=True))
    clips = LatentClips(dataset, "train")
    assert torch.equal(first_frame_latents(dataset, clips, vae, [1])[1], given[1])
    # eight frames of a window of eight are the window; the interval between frames is the window's
    eight = first_frame_latents(dataset, clips, vae, [1, 8])
    assert torch.equal(eight[1], given[1]) and eight[8].shape == (len(clips), 2, 8, 4, 4)
    for entry in range(len(clips)):
        torch.testing.assert_close(eight[8][entry].transpose(0, 1), clips.entry(entry)["mean"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "asked, labels, wants",
    [(3, ["a", "b"], "wants 2, or 0 for .* the data has the labels a, b"), (2, [], "wants 0: the data has no labels")],
)
def test_classes_are_those_of_the_data(asked, labels, wants):
    for fitting in ({}, {"num_classes": 0}, {"num_classes": len(labels)}):
        check_classes(DenoiserSettings(model=fitting), labels)
    with pytest.raises(UserError, match=f"denoiser.model.num_classes: got {asked}, {wants}"):
        check_classes(DenoiserSettings(model={"num_classes": asked}), labels)


def test_the_loss_is_the_sum_of_its_weighted_parts(clips):
    denoiser, batch = a_denoiser(), latent_draws(clips)(0, Part())
    projector = build_projector(denoiser, clips.entry(0)["target"], 0.1, seed=0)
    loss, values = DenoiserTraining(denoiser, DiffusionObjective(), projector, 0.1, 0.5)(batch)
    expected = values["mse"] + values["vlb"] + 0.1 * values["alignment"] + 0.5 * values["image_loss"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    touched = [p.grad is not None for _, p in projector.named_parameters()]
    assert touched and all(touched)


def test_without_targets_or_weight_there_is_no_projector(clips):
    denoiser = a_denoiser()
    assert build_projector(denoiser, None, 0.1, 0) is None
    assert build_projector(denoiser, clips.entry(0)["target"], 0.0, 0) is None


def test_initial_weights_are_a_function_of_the_seed():
    first, same, other = (
        build_denoiser(DenoiserSettings(model=SMALL_DENOISER), 8, 0, seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[n], same[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_the_vae_task_draws_parts_and_gives_a_loss(dataset, vae):
    frames = FrameClips(dataset, "train")
    task = vae_task(vae, frames, VAESettings(batch_size=4, model=SMALL_VAE), 0, "")
    whole, halves = task.draw(2, Part()), [task.draw(2, Part(i, 2)) for i in range(2)]
    for name, tensor in whole.items():
        assert torch.equal(tensor, torch.cat([half[name] for half in halves])), name
    assert whole["frames"].shape == (4, 8, 32, 32, 3) and whole["noise"].shape == (4, 8, 2, 4, 4)
    loss, values = task.module(halves[0])
    assert torch.isfinite(loss) and {"l1", "focal", "kl"} <= values.keys()


def test_only_the_compensation_trains_where_asked():
    vae = build_vae(VAESettings(model=SMALL_VAE, trainable="compensation"))
    trained = {name for name, p in vae.named_parameters() if p.requires_grad}
    assert trained and all(".compensation." in name for name in trained)


def test_pretrained_weights_load_and_a_missing_folder_is_told(tmp_path):
    from diffusers import AutoencoderKLCogVideoX

    backbone = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3, up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8), norm_num_groups=4, latent_channels=4, layers_per_block=1,
        sample_height=32, sample_width=32,
    )  # fmt: skip
    backbone.save_pretrained(tmp_path / "whole" / "vae")
    settings = VAESettings(pretrained=str(tmp_path / "whole"), pretrained_subfolder="vae", trainable="compensation")
    vae = build_vae(settings)
    assert torch.equal(vae.encoder.conv_in.conv.weight, backbone.encoder.conv_in.conv.weight)
    with pytest.raises(UserError, match=r"vae.*nowhere"):
        build_vae(VAESettings(pretrained=str(tmp_path / "nowhere")))


def test_frames_that_do_not_fit_the_vae_are_told(vae):
    assert latent_shape(vae, 8, (32, 32)) == (8, 2, 4, 4)
    with pytest.raises(UserError, match=r"prepare\.size: got frames of 36 x 36, wants multiples of 8"):
        latent_shape(vae, 8, (36, 36))


def test_pixels_survive_the_model_range():
    frames = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    assert torch.equal(to_pixels(to_model_range(frames)), frames)


def test_the_probe_is_fixed_and_sees_a_better_denoiser(clips):
    settings = EvaluationSettings(denoising_samples=12, batch_size=5)
    probe, again = (DenoisingProbe(clips, settings, 2.0, DiffusionObjective(), 0) for _ in range(2))
    denoiser = a_denoiser()
    untrained = probe.measure(denoiser)
    assert untrained == again.measure(denoiser)
    assert untrained["mse"] == pytest.approx(
        float(probe.noise.square().mean()), rel=1e-4
    )  # it predicts no noise at all

    class Perfect(torch.nn.Module):
        config, device = denoiser.config, torch.device("cpu")

        def forward(self, noisy, t, class_labels):
            rows = [int((probe.timestep == x).nonzero()[0, 0]) for x in t]
            noise = probe.noise[rows]
            return type("Output", (), {"sample": torch.cat([noise, torch.zeros_like(noise)], dim=2)})

    assert probe.measure(Perfect())["mse"] < 1e-12


def test_real_windows_are_the_frames_behind_the_entries(dataset, clips, vae):
    windows = real_windows(dataset, clips, 8, 1, most=len(clips))
    assert len(windows) == len(clips) and windows[0].shape == (8, 32, 32, 3)
    mirrored = next(i for i in range(len(clips)) if clips.place(i)["flip"])
    with torch.no_grad():
        mean = vae.encode(to_model_range(torch.from_numpy(windows[mirrored])[None])).latent_dist.mean[0]
    torch.testing.assert_close(mean, clips.entry(mirrored)["mean"], rtol=1e-3, atol=1e-4)
    assert len(real_windows(dataset, clips, 8, 1, most=2)) == 2


def test_reconstruction_keeps_shape_and_type(vae):
    made = reconstruct(vae, [np.zeros((8, 32, 32, 3), np.uint8)] * 3, batch_size=2)
    assert len(made) == 3 and made[0].shape == (8, 32, 32, 3) and made[0].dtype == np.uint8


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "vae"
    with replacing_folder(target) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError), replacing_folder(target) as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    with replacing_folder(target) as temporary:
        (temporary / "b").write_text("new")
    assert [p.name for p in target.iterdir()] == ["b"] and [p.name for p in tmp_path.iterdir()] == ["vae"]
