"""Cached posteriors and targets are what the VAE and the flow give for the pixels they stand for."""

import json

import numpy as np
import pytest
import torch
from made_recordings import moving_frames
from safetensors.numpy import load_file

from medsora.alignment import AlignmentSettings, alignment_targets
from medsora.data import FrameClips, LatentClips, PrepareSettings, prepare_frames, prepare_latents
from medsora.data.latents import hash_vae
from medsora.data.manifest import frames_path
from medsora.data.patients import SALT_FILE
from medsora.errors import UserError
from medsora.models import FrequencyCompensatedVAE

SETTINGS = PrepareSettings(size=16, num_frames=8, interval=2, windows_per_clip=2, images_per_clip=2, val_fraction=0.3)
ALIGNMENT = AlignmentSettings()


def micro_vae(seed=0):
    torch.manual_seed(seed)
    return FrequencyCompensatedVAE(
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=2,
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        sample_height=16,
        sample_width=16,
    ).eval()


@pytest.fixture(scope="module")
def vae():
    return micro_vae()


def write_recordings(root):
    """Four patients; the last one's clip is too short for a window of 8 frames at interval 2."""
    root.mkdir(parents=True)
    for number, count in enumerate((21, 18, 15, 9)):
        np.save(root / f"p{number}.npy", moving_frames(count, 16, 16, seed=number))
    rows = [{"path": f"p{n}.npy", "patient": str(n), "label": "ab"[n % 2]} for n in range(4)]
    (root / "list.json").write_text(json.dumps(rows))
    return str(root / "list.json")


def prepare(tmp_path, vae, settings=SETTINGS, alignment=ALIGNMENT, source=None):
    source = source or write_recordings(tmp_path / "in")
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / SALT_FILE).write_text("0")  # a data set's own would put other patients on each side every time
    prepare_frames(source, tmp_path / "out", settings, progress=False)
    prepare_latents(tmp_path / "out", vae, settings, alignment, "cpu", progress=False)
    return tmp_path / "out"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, vae):
    return prepare(tmp_path_factory.mktemp("latents"), vae)


def pixels_of(dataset, place, count, interval):
    """The frames an entry stands for, straight from the frames cache."""
    frames = load_file(frames_path(dataset, place["clip"]))["frames"][place["start"] :: interval][:count]
    return frames[:, :, ::-1] if place["flip"] else frames


def encode(vae, pixels):
    x = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        return vae.encode(x).latent_dist


def test_entries_are_the_posteriors_of_their_frames(dataset, vae):
    train = LatentClips(dataset, "train")
    places = [train.place(i) for i in range(len(train))]
    assert len({(p["clip"], p["start"], p["flip"]) for p in places}) == len(train) > 3
    assert {p["flip"] for p in places} == {False, True}
    for index, place in enumerate(places):
        entry = train.entry(index)
        pixels = pixels_of(dataset, place, 8, 2)
        posterior = encode(vae, pixels)
        assert entry["mean"].shape == (2, 2, 4, 4) and entry["mean"].dtype == entry["std"].dtype == torch.float32
        torch.testing.assert_close(entry["mean"], posterior.mean[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(entry["std"], posterior.std[0], rtol=1e-5, atol=1e-6)


def test_targets_belong_to_the_same_frames(dataset):
    """Flow of the mirrored frames, not the mirrored flow of others; the frame after the window ends the last flow."""
    train = LatentClips(dataset, "train")
    for index in range(len(train)):
        entry, place = train.entry(index), train.place(index)
        wanted = alignment_targets(pixels_of(dataset, place, 9, 2), 2, (2, 2), ALIGNMENT)
        assert entry["target"].dtype == torch.float16 and entry["mask"].dtype == torch.bool
        torch.testing.assert_close(entry["target"], wanted["target"].half())
        assert (entry["mask"] == wanted["mask"]).all()
    flipped = [train.entry(i)["target"] for i in range(2)]
    assert not torch.equal(*flipped)


def test_windows_start_at_the_stated_places(dataset):
    for split in ("train", "val"):
        clips = LatentClips(dataset, split)
        for index in range(len(clips)):
            place = clips.place(index)
            assert place["start"] in {"p0.npy": (0, 6), "p1.npy": (0, 3), "p2.npy": (0,)}[place["source"]]
    index = json.loads((dataset / "latents.json").read_text())
    assert sorted(record["starts"] for record in index["clips"].values()) == [[], [0], [0, 3], [0, 6]]
    assert [item["reason"] for item in index["skipped"]] == ["it has 9 frames; a window of 8 at interval 2 covers 15"]
    assert index["settings"]["interval"] == 2


def test_images_are_videos_of_one_frame(dataset, vae):
    counts = 0
    for split in ("train", "val"):
        clips, frames = LatentClips(dataset, split), FrameClips(dataset, split)
        assert len(clips.images) == 4 * len(frames)  # two frames, each in two flips
        counts += len(clips.images)
        entry = clips.images.entry(3)  # the last frame of the first clip, mirrored
        last = frames.clip(0, frames.clips[0].frames, np.random.default_rng(0))[-1:, :, ::-1]
        assert entry["mean"].shape == (2, 1, 4, 4) and entry["target"] is None and entry["mask"] is None
        torch.testing.assert_close(entry["mean"], encode(vae, last).mean[0], rtol=1e-5, atol=1e-6)
        assert entry["label"] == clips.manifest.label_index(frames.clips[0])
    assert counts == 16


def test_labels(dataset):
    for split in ("train", "val"):
        clips = LatentClips(dataset, split)
        assert clips.labels == ["a", "b"]
        for index in range(len(clips)):
            assert clips.entry(index)["label"] == int(clips.place(index)["source"][1]) % 2


def test_scaling_factor_is_of_sampled_training_latents(dataset):
    train = LatentClips(dataset, "train")
    entries = [train.entry(i) for i in range(len(train))]
    generator = torch.Generator().manual_seed(0)
    samples = torch.cat(
        [(e["mean"] + e["std"] * torch.randn(200, *e["mean"].shape, generator=generator)).flatten() for e in entries]
    )
    assert train.statistics["std"] == pytest.approx(float(samples.std()), rel=0.01)
    assert train.statistics["mean"] == pytest.approx(float(samples.mean()), abs=0.01)
    assert train.statistics["scaling_factor"] == pytest.approx(1 / train.statistics["std"])


def encoded(output, work):
    """Names of the latents files that `work` wrote."""
    before = {path.name: path.stat().st_mtime_ns for path in (output / "latents").iterdir()}
    work()
    return {p.name for p in (output / "latents").iterdir() if before.get(p.name) != p.stat().st_mtime_ns}


def test_second_run_encodes_only_what_changed(tmp_path, vae):
    source = write_recordings(tmp_path / "in")
    output = prepare(tmp_path, vae, source=source)
    index = (output / "latents.json").read_text()
    assert encoded(output, lambda: prepare(tmp_path, vae, source=source)) == set()
    assert (output / "latents.json").read_text() == index

    scaled = micro_vae()
    scaled.register_to_config(scaling_factor=0.3)  # set from these very latents: no reason to make them anew
    assert encoded(output, lambda: prepare(tmp_path, scaled, source=source)) == set()

    victim = sorted((output / "latents").iterdir())[0]
    data = bytearray(victim.read_bytes())
    data[-3] ^= 1
    victim.write_bytes(data)
    assert encoded(output, lambda: prepare(tmp_path, vae, source=source)) == {victim.name}
    victim.unlink()
    assert encoded(output, lambda: prepare(tmp_path, vae, source=source)) == {victim.name}
    assert (output / "latents.json").read_text() == index

    np.save(tmp_path / "in" / "p1.npy", moving_frames(18, 16, 16, seed=77))
    prepare_frames(source, output, SETTINGS, progress=False)
    with pytest.raises(UserError, match="older than its frames"):
        [LatentClips(output, split) for split in ("train", "val")]
    assert len(encoded(output, lambda: prepare(tmp_path, vae, source=source))) == 1
    heavier = AlignmentSettings(weight=0.7)  # the loss weight is no property of the targets
    assert encoded(output, lambda: prepare(tmp_path, vae, alignment=heavier, source=source)) == set()
    stricter = AlignmentSettings(motionless=0.5)
    assert len(encoded(output, lambda: prepare(tmp_path, vae, alignment=stricter, source=source))) == 4
    assert len(encoded(output, lambda: prepare(tmp_path, micro_vae(1), source=source))) == 4
    fewer = PrepareSettings(**{**vars(SETTINGS), "flips": False})
    assert len(encoded(output, lambda: prepare(tmp_path, micro_vae(1), fewer, source=source))) == 4
    assert {LatentClips(output, "train").place(i)["flip"] for i in range(len(LatentClips(output, "train")))} == {False}


def test_interrupted_encoding_goes_on(tmp_path, vae, monkeypatch):
    import medsora.data.latents as latents_module

    source, real, done = write_recordings(tmp_path / "in"), latents_module._ClipEncoder.run, []

    def interrupted(self, plan):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return real(self, plan)

    monkeypatch.setattr(latents_module._ClipEncoder, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, vae, source=source)
    with pytest.raises(UserError, match="latents in .* was interrupted"):
        LatentClips(tmp_path / "out", "train")
    monkeypatch.setattr(latents_module._ClipEncoder, "run", real)
    assert len(encoded(tmp_path / "out", lambda: prepare(tmp_path, vae, source=source))) == 2
    assert len(LatentClips(tmp_path / "out", "train")) > 0


def test_without_alignment(tmp_path, vae):
    output = prepare(tmp_path, vae, alignment=AlignmentSettings(representation="none"))
    entry = LatentClips(output, "train").entry(0)
    assert entry["target"] is None and entry["mask"] is None and entry["mean"].shape == (2, 2, 4, 4)


def test_encoding_in_bfloat16_stores_float32(tmp_path, dataset):
    vae = micro_vae()
    before = hash_vae(vae)
    output = prepare(tmp_path, vae, PrepareSettings(**{**vars(SETTINGS), "encode_dtype": "bfloat16"}))
    rough, exact = LatentClips(output, "train"), LatentClips(dataset, "train")
    assert len(rough) == len(exact)
    for index in range(len(rough)):
        mean, reference = rough.entry(index)["mean"], exact.entry(index)["mean"]
        assert mean.dtype == torch.float32 and not torch.equal(mean, reference)
        assert (mean - reference).norm() < 0.05 * reference.norm()
    assert hash_vae(vae) == before  # the caller's weights are not rounded


def test_no_clip_long_enough(tmp_path, vae):
    with pytest.raises(
        UserError, match=r"no training clip in .* holds a window of 16 frames at interval 3 \(46 frames"
    ):
        prepare(tmp_path, vae, PrepareSettings(size=16, interval=3))


def test_frames_first(tmp_path, vae):
    with pytest.raises(UserError, match="is not a prepared data set: it has no manifest.json"):
        prepare_latents(tmp_path, vae, SETTINGS, ALIGNMENT, "cpu")
    prepare_frames(write_recordings(tmp_path / "in"), tmp_path / "out", SETTINGS, progress=False)
    with pytest.raises(UserError, match="is not a data set with latents"):
        LatentClips(tmp_path / "out", "train")


def test_vae_hash_sees_weights_and_config(vae):
    assert hash_vae(vae) == hash_vae(micro_vae()) != hash_vae(micro_vae(1))
    other = micro_vae()
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    assert hash_vae(other) != hash_vae(vae)


def test_hash_survives_saving(tmp_path, vae):
    """The trainer saves the VAE and loads it when it goes on: its latents must stay valid."""
    vae.save_pretrained(tmp_path)
    assert hash_vae(FrequencyCompensatedVAE.from_pretrained(tmp_path)) == hash_vae(vae)
