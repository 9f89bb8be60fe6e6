"""`python -m medsora.sample` as its user meets it."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from micro_model import micro_pipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from medsora.data.readers import read_video
from medsora.errors import run_command
from medsora.media import SYNTHETIC_MARK, encode_mp4, read_mark, to_uint8, write_mp4
from medsora.sample import main, neighbours, read_first_frame

QUICK = ("--steps", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    micro_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def own_model(tmp_path):
    """A model to damage."""
    micro_pipeline().save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def call(*arguments):
    return run_command(lambda: main([str(argument) for argument in arguments]))


def refused(capsys, *arguments):
    """The one sentence that a refused command says."""
    capsys.readouterr()
    assert call(*arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said
    return said


def video(folder, index):
    return read_video(folder / f"video-{index:05d}.mp4").frames.astype(int)


def test_files_their_marks_and_their_record(model, tmp_path, capsys):
    assert call("--model", model, "--num-videos", 3, *QUICK, "--seed", 7, "--gif", "--output", tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "sampling  3 video(s)" in said.out and str(tmp_path / "out") in said.out and "not for diagnosis" in said.out
    assert "sampling: 100%" in said.err and "9/9" in said.err and "Loading" not in said.err
    names = [f"video-0000{i}{kind}" for i in range(3) for kind in (".gif", ".mp4")]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["contact-sheet.png", "samples.json", *names]
    for name in (*names, "contact-sheet.png"):
        assert read_mark(tmp_path / "out" / name) == SYNTHETIC_MARK
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record["notice"] == SYNTHETIC_MARK and sorted(record["videos"]) == names[1::2]
    assert record["settings"] == {
        "seed": 7, "steps": 3, "scheduler": "ddim", "num_frames": 8, "height": 32, "width": 32, "fps": 5.0,
        "guidance_scale": 1.0, "class_label": None, "first_frame": None,
    }  # fmt: skip
    assert record["model"]["sha256"].keys() >= {"vae/diffusion_pytorch_model.safetensors", "denoiser/config.json"}
    assert record["versions"].keys() == {"medsora", "torch", "diffusers", "python"}
    expected = to_uint8(micro_pipeline()(num_videos=3, num_inference_steps=3, seed=7, progress=False).videos)
    for index in range(3):
        assert (tmp_path / "out" / f"video-0000{index}.mp4").read_bytes() == encode_mp4(expected[index], 5.0)


def test_the_pipelines_settings_decide_what_is_not_given(model, capsys):
    assert call("--model", model, "--num_videos=1", "--steps", 1, "--num_frames", 9, "--fps", 12.5) == 0
    made = read_video(model / "generated" / "seed-0" / "video-00000.mp4")
    assert made.frames.shape == (9, 32, 32, 3) and made.fps == 12.5


def test_a_second_run_makes_only_what_is_missing(model, tmp_path, capsys):
    run = ("--model", model, *QUICK, "--output", tmp_path, "--batch-size", 1)
    assert call(*run, "--num-videos", 4) == 0
    made = {p: p.read_bytes() for p in tmp_path.glob("*.mp4")}
    (tmp_path / "video-00001.mp4").unlink()
    (tmp_path / "video-00002.mp4").write_bytes(made[tmp_path / "video-00002.mp4"][:-20])
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.mp4")}
    capsys.readouterr()
    assert call(*run, "--num-videos", 5, "--gif") == 0
    said = capsys.readouterr()
    assert "sampling  3 video(s), 2 are there already" in said.out and "9/9" in said.err
    assert {p: p.read_bytes() for p in made} == made
    kept = {p.name for p in times if p.stat().st_mtime_ns == times[p]}
    assert kept == {"video-00000.mp4", "video-00003.mp4"}
    assert len(list(tmp_path.glob("*.gif"))) == len(list(tmp_path.glob("*.mp4"))) == 5
    assert call(*run, "--num-videos", 5) == 0
    assert "sampling  0 video(s), 5 are there already" in capsys.readouterr().out


def test_videos_do_not_depend_on_the_batch_size(model, tmp_path):
    for size in (1, 3):
        assert (
            call("--model", model, *QUICK, "--num-videos", 3, "--batch-size", size, "--output", tmp_path / f"{size}")
            == 0
        )
    for index in range(3):
        assert np.abs(video(tmp_path / "1", index) - video(tmp_path / "3", index)).mean() < 0.5


def test_interrupted_and_continued(model, tmp_path):
    # Many videos, so that the signal, sent at the first, arrives long before the last on any machine.
    run = ["--model", str(model), "--num-videos", "60", "--steps", "20", "--batch-size", "1", "--output", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "medsora.sample", *run], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (tmp_path / "video-00000.mp4").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130 and "the same command goes on where it was" in said and "Traceback" not in said
    first = (tmp_path / "video-00000.mp4").read_bytes()
    assert not (tmp_path / "video-00059.mp4").exists()
    assert call(*run) == 0
    assert len(list(tmp_path.glob("*.mp4"))) == 60 and (tmp_path / "video-00000.mp4").read_bytes() == first


def test_a_folder_keeps_to_its_settings_and_model(model, own_model, tmp_path, capsys):
    out = ("--output", tmp_path / "out", "--num-videos", 1)
    assert call("--model", model, *QUICK, *out) == 0
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "black.png")
    for option, value, recorded, now in (
        ("--steps", 4, "3", "4"),
        ("--seed", 1, "0", "1"),
        ("--scheduler", "ddpm", '"ddim"', '"ddpm"'),
        ("--fps", 6, "5.0", "6.0"),
        ("--class-label", 2, "null", "2"),
        ("--first-frame", tmp_path / "black.png", "null", '"sha256:'),
    ):
        said = refused(capsys, "--model", model, *QUICK, *out, option, value)
        assert f"made with {option} {recorded}, now it is {now}" in said and "another --output" in said
    assert call("--model", model, *QUICK, *out, "--scheduler", "ddim", "--batch-size", 2, "--device", "cpu") == 0
    weights = own_model / "denoiser" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(weights).items()}, weights)
    assert "videos of another model" in refused(capsys, "--model", own_model, *QUICK, *out)
    (tmp_path / "out" / "samples.json").write_text('{"settings": 3}')
    assert "samples.json is damaged" in refused(capsys, "--model", model, *QUICK, *out)
    (tmp_path / "out" / "samples.json").unlink()
    assert "holds files that are no samples of ours" in refused(capsys, "--model", model, *QUICK, *out)
    assert "black.png is a file" in refused(capsys, "--model", model, "--output", tmp_path / "black.png")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--steps", "1001"), "--steps: got 1001, wants 1 to 1000"),
        (("--num-videos", "0"), "--num-videos: got 0, wants 1 or more"),
        (("--batch-size", "0"), "--batch-size: got 0, wants 1 or more"),
        (("--num-frames", "7"), "--num-frames: got 7, wants 1, 8k or 8k + 1 frames"),
        (("--height", "33"), "--height: got 33, wants a positive multiple of 8"),
        (("--fps", "0"), "--fps: got 0"),
        (("--scheduler", "euler"), "--scheduler: got 'euler', wants one of"),
        (("--class-label", "9"), "--class-label: got 9, wants numbers from 0 to 2"),
        (("--guidance-scale", "2"), "--guidance-scale: got 2.0, wants 1 without a class label or first frame"),
        (("--first-frame", "nowhere.png"), "--first-frame: nowhere.png cannot be read"),
        (("--first-frame", "nowhere.mp4"), "--first-frame: nowhere.mp4 cannot be read"),
        (("--device", "abacus"), "--device: got 'abacus', which cannot be used here"),
        (("--num-frames", "20", "--window", "12"), "--window: got 12, wants 1, 8k or 8k + 1 frames"),
        (("--num-frames", "20", "--overlap", "2"), "--overlap: got 2, wants the number of frames this model was given"),
        (("--num-frames", "20", "--overlap", "8"), "--overlap: got 8, wants fewer than the 8 frames of a window"),
        (("--overlap", "1"), "--overlap: got 1, wants --num-frames above the 8 of a window"),
        (("--num-frames", "20", "--class-label", "3"), "--class-label: got 3, wants numbers from 0 to 2"),
        (("--steps", "many"), "steps"),
        (("--stepps", "3"), "stepps"),
    ],
)
def test_a_bad_option_is_one_sentence_and_leaves_no_folder(model, tmp_path, capsys, arguments, words):
    said = refused(capsys, "--model", model, "--output", tmp_path / "out", *arguments)
    assert words in said and not (tmp_path / "out").exists()


class TestLongVideos:
    def test_the_file_grows_with_the_windows_and_is_that_of_the_pipeline(self, model, tmp_path, capsys):
        out = tmp_path / "out"
        run = ("--model", model, *QUICK, "--num-videos", 2, "--overlap", 1, "--output", out)
        assert call(*run, "--num-frames", 20, "--class-label", 1) == 0
        assert "18/18" in capsys.readouterr().err  # 2 videos, 3 windows, 3 steps
        chunks = micro_pipeline().long(
            20, num_videos=2, overlap=1, num_inference_steps=3, class_labels=1, progress=False
        )
        frames = to_uint8(np.concatenate(list(chunks), axis=1))
        for index in range(2):
            assert (out / f"video-0000{index}.mp4").read_bytes() == encode_mp4(frames[index], 5.0)
        with Image.open(out / "contact-sheet.png") as sheet:
            assert sheet.width > 8 * 32
        settings = json.loads((out / "samples.json").read_text())["settings"]
        assert (settings["num_frames"], settings["window"], settings["overlap"]) == (20, 8, 1)
        assert call(*run, "--num-frames", 20, "--class-label", 1) == 0
        assert "sampling  0 video(s), 2 are there already" in capsys.readouterr().out

    def test_what_stops_on_the_way_leaves_no_file(self, model, tmp_path, monkeypatch, capsys):
        from medsora import MedSoraPipeline

        windows = MedSoraPipeline._windows

        def stopped(*arguments):
            for number, window in enumerate(windows(*arguments)):
                if number == 2:
                    raise KeyboardInterrupt
                yield window

        monkeypatch.setattr(MedSoraPipeline, "_windows", stopped)
        run = ("--model", model, *QUICK, "--num-videos", 2, "--overlap", 1, "--output", tmp_path)
        assert call(*run, "--num-frames", 30) == 130
        assert [p.name for p in tmp_path.iterdir()] == ["samples.json"]

    def test_windows_of_another_length(self, model, tmp_path):
        run = ("--model", model, "--steps", 1, "--num-videos", 1, "--output", tmp_path)
        assert call(*run, "--num-frames", 27, "--window", 16) == 0
        assert video(tmp_path, 0).shape == (27, 32, 32, 3)
        assert json.loads((tmp_path / "samples.json").read_text())["settings"]["overlap"] == 9

    def test_a_model_that_cannot_go_on(self, tmp_path, capsys):
        micro_pipeline(first_frame_conditioning=False, num_classes=0).save_pretrained(tmp_path / "plain")
        run = ("--model", tmp_path / "plain", *QUICK)
        said = refused(capsys, *run, "--num-frames", 20)
        assert "--num-frames: got 20, wants at most the 8 of a window: this model was trained without" in said
        assert call(*run, "--num-videos", 1, "--num-frames", 24, "--window", 24) == 0
        assert "--class-label: got 1, wants None: this model was trained without classes" in refused(
            capsys, *run, "--class-label", 1
        )
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "black.png")
        said = refused(capsys, *run, "--first-frame", tmp_path / "black.png")
        assert "--first-frame: got frames, wants None: this model was trained without given first frames" in said


def test_pictures(model, tmp_path, capsys):
    assert call("--model", model, *QUICK, "--num-videos", 9, "--num-frames", 1, "--output", tmp_path) == 0
    expected = micro_pipeline()(num_videos=9, num_frames=1, num_inference_steps=3, progress=False).videos
    for index in range(9):
        path = tmp_path / f"image-0000{index}.png"
        assert read_mark(path) == SYNTHETIC_MARK
        assert np.abs(np.asarray(Image.open(path)).astype(int) - to_uint8(expected)[index, 0]).max() <= 1
    assert (tmp_path / "contact-sheet.png").is_file() and not list(tmp_path.glob("*.mp4"))
    assert "--gif: got pictures" in refused(capsys, "--model", model, "--num-frames", 1, "--gif")


def test_a_class_by_its_name(tmp_path, capsys):
    """Names that look like numbers are names."""
    pipeline = micro_pipeline()
    pipeline.register_to_config(class_names=["0", "10", "2"])
    pipeline.save_pretrained(tmp_path / "model")
    run = ("--model", tmp_path / "model", *QUICK, "--num-videos", 1)
    assert call(*run, "--class-label", "10", "--output", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["settings"]["class_label"] == 1
    said = refused(capsys, *run, "--class-label", "polyp")
    assert "--class-label: got 'polyp', wants numbers from 0 to 2, or one of 0, 10, 2" in said


class TestBrokenModels:
    def test_none(self, tmp_path, capsys):
        assert f"--model: there is no folder {tmp_path / 'x'}" in refused(capsys, "--model", tmp_path / "x")
        assert "holds no model" in refused(capsys, "--model", tmp_path)

    def test_an_unfinished_run(self, tmp_path, capsys):
        (tmp_path / "settings.json").write_text("{}")
        assert "has not finished (no model_index.json); run its training" in refused(capsys, "--model", tmp_path)

    @pytest.mark.parametrize("part", ["vae", "denoiser"])
    def test_weights(self, own_model, capsys, part):
        weights = own_model / part / "diffusion_pytorch_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2])
        assert "cannot be loaded" in refused(capsys, "--model", own_model)
        weights.write_bytes(whole)
        tensors = load_file(weights)
        (lost, *_) = [name for name in tensors if name.endswith("norm1.norm_layer.bias") or name.endswith("A_log")]
        save_file({name: tensor for name, tensor in tensors.items() if name != lost}, weights)
        said = refused(capsys, "--model", own_model)
        assert f"the weights in {own_model / part} lack 1 tensors of its config, such as {lost};" in said
        save_file(tensors | {lost: tensors[lost][1:].contiguous()}, weights)
        said = refused(capsys, "--model", own_model)
        assert f"cannot be loaded (its weights are of another preset or size than its config: {lost} is [" in said
        weights.unlink()
        assert f"{part} holds no weights" in refused(capsys, "--model", own_model)

    @pytest.mark.parametrize("name", ["model_index.json", "vae/config.json", "scheduler/scheduler_config.json"])
    def test_configs(self, own_model, capsys, name):
        (own_model / name).write_text("{")
        assert "cannot be loaded" in refused(capsys, "--model", own_model)
        (own_model / name).unlink()
        assert "--model: " in refused(capsys, "--model", own_model)

    def test_no_traceback_from_a_shell(self, tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "medsora.sample", "--model", tmp_path], capture_output=True, text=True
        )
        assert done.returncode == 2 and done.stderr.startswith("error: --model: ") and done.stderr.count("\n") == 1


class TestFirstFrame:
    def test_a_picture_or_a_video_of_this_size_is_taken_as_it_is(self, tmp_path):
        frames = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
        Image.fromarray(frames[0]).save(tmp_path / "a.png")
        assert np.array_equal(read_first_frame(str(tmp_path / "a.png"), 24, 32), frames[0])
        np.save(tmp_path / "a.npy", frames)
        assert np.array_equal(read_first_frame(str(tmp_path / "a.npy"), 24, 32), frames[0])

    def test_another_is_cut_square_without_its_border(self, tmp_path):
        picture = np.zeros((100, 200, 3), np.uint8)
        picture[10:90, 60:140] = (200, 100, 50)
        Image.fromarray(picture).save(tmp_path / "a.png")
        made = read_first_frame(str(tmp_path / "a.png"), 32, 32)
        assert made.shape == (32, 32, 3) and (made == (200, 100, 50)).all()

    def test_videos_start_from_it(self, model, tmp_path, capsys):
        frames = np.broadcast_to(np.uint8([200, 30, 30]), (8, 48, 64, 3))
        write_mp4(tmp_path / "a.mp4", frames, 5)
        run = ("--model", model, *QUICK, "--num-videos", 1, "--first-frame", tmp_path / "a.mp4")
        assert call(*run, "--output", tmp_path / "given") == 0
        assert call(*run[:-2], "--output", tmp_path / "free") == 0
        assert np.abs(video(tmp_path / "given", 0) - video(tmp_path / "free", 0)).mean() > 1
        said = refused(capsys, *run, "--output", tmp_path / "wide", "--width", 40)
        assert "a.mp4 is 48 x 64, wants 32 x 40 like the video" in said


def test_neighbours():
    assert neighbours([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3], [4]]
    assert neighbours([1, 4, 5, 9], 4) == [[1], [4, 5], [9]]
    assert neighbours([], 4) == []


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for words in ("research only and not for diagnosis", "--num-videos", "examples:", "--first-frame", "seed-SEED"):
        assert words in said
