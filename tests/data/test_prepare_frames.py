"""A folder as users have them, damage included, becomes a data set; a second run does only what changed."""

import json
import os

import numpy as np
import pytest
from made_recordings import moving_frames, write_dicom, write_stills, write_truncated_mp4, write_video
from safetensors.numpy import load_file

from medsora.data import FrameClips, Manifest, PrepareSettings, prepare_frames
from medsora.data.manifest import frames_path
from medsora.errors import UserError

SETTINGS = PrepareSettings(size=32, num_frames=8, max_clip_frames=24, val_fraction=0.3)


def prepare(source, output, settings=SETTINGS):
    return prepare_frames(str(source), output, settings, progress=False)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Every kind of recording and every kind of damage, in one folder."""
    root = tmp_path_factory.mktemp("hospital")
    write_video(root / "anna" / "first.mp4", moving_frames(30, seed=1))
    write_video(root / "anna" / "second.avi", moving_frames(12, seed=2))
    write_video(root / "bert" / "portrait.mov", moving_frames(16, 96, 54, seed=3), codec="mjpeg", pixels="yuvj420p")
    write_truncated_mp4(root / "bert" / "truncated.mp4", moving_frames(40, seed=4))
    write_stills(root / "carl" / "stills", moving_frames(10, seed=5))
    (root / "carl" / "stills" / "frame4.png").write_bytes(b"\x89PNG broken")
    write_dicom(
        root / "dora" / "echo.dcm",
        moving_frames(9, seed=6),
        "RGB",
        PatientID="SECRET-4711",
        PatientName="Doe^Dora",
        PatientBirthDate="19500101",
        BurnedInAnnotation="YES",
        FrameTime="50",
    )
    write_dicom(root / "echo16", moving_frames(9, seed=7)[..., 0].astype(np.uint16) * 9, "MONOCHROME2", PatientID="X1")
    np.savez(root / "array.npz", frames=moving_frames(11, seed=8), fps=12.5)
    write_video(root / "short.mp4", moving_frames(3))
    (root / "text.mp4").write_text("This is not a video. " * 20)
    (root / "nothing.mp4").write_bytes(b"")
    write_dicom(root / "report.dcm", None, "", PatientID="SECRET-4711")
    np.save(root / "black.npy", np.zeros((10, 20, 20), np.uint8))
    (root / "readme.txt").write_text("hello")
    (root / ".DS_Store").write_text("hidden")
    (root / "lost.mp4").symlink_to(root / "gone.mp4")
    return root


@pytest.fixture(scope="module")
def prepared(hospital, tmp_path_factory):
    output = tmp_path_factory.mktemp("data")
    return output, prepare(hospital, output)


def clips_of(manifest, source):
    return [clip for clip in manifest.clips if clip.source == source]


def test_all_that_is_usable_is_used(prepared):
    output, manifest = prepared
    lengths = {clip.source: clip.frames for clip in manifest.clips}
    assert lengths.pop("bert/truncated.mp4") in range(8, 40)
    assert lengths == {
        "anna/first.mp4": 24,  # and 6 more, too few for a clip
        "anna/second.avi": 12,
        "array.npz": 11,
        "bert/portrait.mov": 16,
        "carl/stills": 9,
        "dora/echo.dcm": 9,
        "echo16": 9,
    }
    for clip in manifest.clips:
        frames = load_file(frames_path(output, clip.id))["frames"]
        assert frames.shape == (clip.frames, 32, 32, 3) and frames.dtype == np.uint8 and frames.std() > 10
    fps = {clip.source: clip.fps for clip in manifest.clips}
    assert fps["dora/echo.dcm"] == 20 and fps["array.npz"] == 12.5 and fps["anna/first.mp4"] == 25


def test_each_skipped_file_has_its_sentence(prepared):
    reasons = {item.source: item.reason for item in prepared[1].skipped}
    expected = {
        "short.mp4": "it has 3 frames; at least 8 are needed",
        "text.mp4": "cannot be opened as a video",
        "nothing.mp4": "cannot be opened as a video",
        "report.dcm": "DICOM file without pixels",
        "black.npy": "black throughout",
        "readme.txt": "not a kind of video",
        "lost.mp4": "link that leads nowhere",
    }
    assert reasons.keys() == expected.keys()
    for source, words in expected.items():
        assert words in reasons[source]


def test_warnings_are_kept_with_the_clip(prepared):
    def warnings(source):
        return " ".join(clips_of(prepared[1], source)[0].warnings)

    assert "cut off" in warnings("bert/truncated.mp4")
    assert "frame4.png cannot be read" in warnings("carl/stills")
    assert "BurnedInAnnotation is YES" in warnings("dora/echo.dcm")
    assert any("names or dates" in note for note in prepared[1].notes)


def test_no_patient_data_leaves(prepared):
    """No name or number of the patient is in any file, and the salt only in its own."""
    output, manifest = prepared
    salt = (output / "patient-salt.txt").read_text().strip()
    for path in (p for p in output.rglob("*") if p.is_file()):
        content = path.read_bytes()
        for secret in (b"SECRET-4711", b"Doe", b"19500101"):
            assert secret not in content
        assert path.name == "patient-salt.txt" or salt.encode() not in content
    assert len(salt) == 64 and len({clip.patient for clip in manifest.clips}) == 6


def test_two_data_sets_give_a_patient_two_codes(hospital, tmp_path, prepared):
    (tmp_path / "in").mkdir()
    os.link(hospital / "dora" / "echo.dcm", tmp_path / "in" / "echo.dcm")
    code = prepare(tmp_path / "in", tmp_path / "out").clips[0].patient
    assert code != clips_of(prepared[1], "dora/echo.dcm")[0].patient


def test_a_patient_is_on_one_side(prepared):
    sides = {}
    for clip in prepared[1].clips:
        sides.setdefault(clip.patient, set()).add(clip.split)
    assert all(len(side) == 1 for side in sides.values())
    assert {"train"} in sides.values() and {"val"} in sides.values()


def test_portrait_is_cut_at_the_centre(prepared):
    output, manifest = prepared
    clip = clips_of(manifest, "bert/portrait.mov")[0]
    frames = load_file(frames_path(output, clip.id))["frames"].astype(float)
    whole = moving_frames(16, 96, 54, seed=3)[:, 21:75].astype(float)  # the middle 54 of 96 rows
    small = whole[:, np.arange(32) * 54 // 32][:, :, np.arange(32) * 54 // 32]
    assert np.corrcoef(frames.ravel(), small.ravel())[0, 1] > 0.9


def test_second_run_reads_nothing_again(prepared, hospital, monkeypatch):
    output, manifest = prepared
    times = {path: path.stat().st_mtime_ns for path in (output / "frames").iterdir()}
    again = prepare(hospital, output)
    assert again == manifest
    assert {path: path.stat().st_mtime_ns for path in (output / "frames").iterdir()} == times


def write_three(root):
    for number in range(3):
        write_video(root / f"p{number}" / "a.avi", moving_frames(12, seed=number))
    return root


def changed_files(output, work):
    """Names of the clips whose frames file `work` wrote."""
    before = {path.name: path.stat().st_mtime_ns for path in (output / "frames").iterdir()}
    work()
    return {p.name for p in (output / "frames").iterdir() if before.get(p.name) != p.stat().st_mtime_ns}


def test_only_what_changed_is_done(tmp_path):
    source, output = write_three(tmp_path / "in"), tmp_path / "out"
    manifest = prepare(source, output)
    name = {clip.source: f"{clip.id}.safetensors" for clip in manifest.clips}
    splits = {clip.patient: clip.split for clip in manifest.clips}

    def change_one():
        write_video(source / "p1" / "a.avi", moving_frames(14, seed=9))

    def damage_one():
        path = output / "frames" / name["p0/a.avi"]
        data = bytearray(path.read_bytes())
        data[-5] ^= 255
        path.write_bytes(data)

    def lose_one():
        (output / "frames" / name["p2/a.avi"]).unlink()

    for disturb, which in ((change_one, "p1/a.avi"), (damage_one, "p0/a.avi"), (lose_one, "p2/a.avi")):
        disturb()
        assert changed_files(output, lambda: prepare(source, output)) == {name[which]}
    assert {clip.source: clip.frames for clip in Manifest.read(output).clips}["p1/a.avi"] == 14

    write_video(source / "p7" / "b.avi", moving_frames(12, seed=7))
    (source / "p0" / "a.avi").unlink()
    prepare(source, output)
    after = Manifest.read(output)
    assert [clip.source for clip in after.clips] == ["p1/a.avi", "p2/a.avi", "p7/b.avi"]
    assert len(list((output / "frames").iterdir())) == 3  # the lost recording's file went with it
    assert {clip.patient for clip in after.clips} & splits.keys()

    larger = PrepareSettings(**{**vars(SETTINGS), "size": 40})
    assert len(changed_files(output, lambda: prepare(source, output, larger))) == 3
    other_split = PrepareSettings(**{**vars(larger), "seed": 5, "val_fraction": 0.5})
    assert changed_files(output, lambda: prepare(source, output, other_split)) == set()


def test_interrupted_run_goes_on(tmp_path, monkeypatch):
    import medsora.data.frames as frames_module

    source, output = write_three(tmp_path / "in"), tmp_path / "out"
    real, seen = frames_module._prepare_source, []

    def interrupted(item, *rest):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(item.name)
        return real(item, *rest)

    monkeypatch.setattr(frames_module, "_prepare_source", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, output)
    with pytest.raises(UserError, match="interrupted; run medsora.prepare again"):
        FrameClips(output, "train")

    monkeypatch.setattr(frames_module, "_prepare_source", real)
    assert len(changed_files(output, lambda: prepare(source, output))) == 1
    assert len(Manifest.read(output).clips) == 3


def test_list_with_patients_and_labels(tmp_path):
    for name in ("a", "b", "c"):
        write_video(tmp_path / "videos" / f"{name}.avi", moving_frames(9, seed=ord(name)))
    write_dicom(tmp_path / "videos" / "d.dcm", moving_frames(9), "RGB", PatientID="other")
    (tmp_path / "list.csv").write_text(
        "path,patient,label\nvideos/a.avi,1,normal\nvideos/b.avi,1,polyp\nvideos/c.avi,2,polyp\n"
        "videos/d.dcm,2,\nvideos/gone.avi,3,\nvideos/a.avi,9,\n"
    )
    manifest = prepare(tmp_path / "list.csv", tmp_path / "out")
    assert [clip.label for clip in manifest.clips] == ["normal", "polyp", "polyp", None]
    patients = [clip.patient for clip in manifest.clips]
    assert patients[0] == patients[1] != patients[2] == patients[3]  # the column stands above the tag
    assert manifest.labels == ["normal", "polyp"] and manifest.label_index(manifest.clips[1]) == 1
    assert [(s.source, s.reason) for s in manifest.skipped] == [
        ("videos/a.avi", "list.csv lists it more than once"),
        ("videos/gone.avi", "it does not exist"),
    ]
    rows = [{"path": "videos/b.avi", "patient": "7", "label": "x"}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert [clip.source for clip in prepare(tmp_path / "list.json", tmp_path / "out2").clips] == ["videos/b.avi"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.csv", "file,patient\na.mp4,1\n", 'row 1 .* has no "path"; its columns are file, patient'),
        ("l.csv", "path\n", "names no video"),
        ("l.json", "{", "cannot be read as json"),
        ("l.json", '{"path": "a"}', "must be a JSON array"),
    ],
)
def test_unfit_lists(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        prepare(tmp_path / name, tmp_path / "out")


def test_empty_folder(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="in is empty"):
        prepare(tmp_path / "in", tmp_path / "out")


def test_nothing_usable_names_folder_and_reasons(tmp_path):
    write_video(tmp_path / "in" / "a.avi", moving_frames(3))
    write_video(tmp_path / "in" / "b.avi", moving_frames(3))
    (tmp_path / "in" / "c.mp4").write_text("no video")
    with pytest.raises(UserError, match="nothing in .*in can be used: a.avi and 1 more: it has 3 frames.*c.mp4: it"):
        prepare(tmp_path / "in", tmp_path / "out")


def test_a_prepared_folder_without_its_frames_is_told_as_such(tmp_path):
    prepare(write_three(tmp_path / "in"), tmp_path / "data")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "manifest.json").write_bytes((tmp_path / "data" / "manifest.json").read_bytes())
    with pytest.raises(UserError, match="3 of 3 files that the index of .*moved lists are not there, the first frames"):
        prepare(tmp_path / "moved", tmp_path / "out")
    with pytest.raises(UserError, match="moved/manifest.json belongs to a prepared data set; give its folder, .*moved"):
        prepare(tmp_path / "moved" / "manifest.json", tmp_path / "out")


def test_unknown_sources(tmp_path):
    for source, words in (("builtin:heart", "builtin:heart is not built in"), (tmp_path / "no", "does not exist")):
        with pytest.raises(UserError, match=words):
            prepare(source, tmp_path / "out")


def test_anothers_manifest_is_not_overwritten(tmp_path):
    source = write_three(tmp_path / "in")
    (source / "manifest.json").write_text('[{"path": "p0/a.avi"}]')
    with pytest.raises(UserError, match="choose another output folder"):
        prepare(source / "manifest.json", source)
    assert (source / "manifest.json").read_text() == '[{"path": "p0/a.avi"}]'


def test_output_inside_the_source_is_not_scanned(tmp_path):
    source = write_three(tmp_path)
    prepare(source, source / "prepared")
    manifest = prepare(source, source / "prepared")
    assert len(manifest.clips) == 3 and manifest.skipped == []


def test_one_video_and_one_patient(tmp_path):
    manifest = prepare(write_video(tmp_path / "a.avi", moving_frames(60)), tmp_path / "out")
    assert [(clip.first_frame, clip.frames) for clip in manifest.clips] == [(0, 24), (24, 24), (48, 12)]
    assert manifest.of_split("val") == [] and any("only one patient" in note for note in manifest.notes)


def test_built_in_cine(tmp_path):
    manifest = prepare("builtin:cine", tmp_path)
    assert [(clip.split, clip.frames, clip.fps) for clip in manifest.clips] == [("train", 22, 30.0), ("val", 8, 30.0)]
    assert len({clip.patient for clip in manifest.clips}) == 1 and not manifest.clips[0].synthetic
    assert any("fitting" in note for note in manifest.notes)
    assert not (tmp_path / "patient-salt.txt").exists()


def test_built_in_phantom(tmp_path):
    manifest = prepare("builtin:phantom:6", tmp_path / "a")
    assert len(manifest.clips) == 6 and all(clip.synthetic for clip in manifest.clips)
    assert manifest.labels == ["normal", "polyp"] and len(manifest.of_split("val")) >= 1
    again = prepare("builtin:phantom:6", tmp_path / "b")
    assert again == manifest


def test_frame_clips(tmp_path):
    source = tmp_path / "in.npy"
    np.save(source, np.arange(20, dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2) * 12 + 5)
    prepare(source, tmp_path / "out", PrepareSettings(size=16))
    clips = FrameClips(tmp_path / "out", "train")
    assert len(clips) == 1 and len(FrameClips(tmp_path / "out", "train", min_frames=21)) == 0
    seen = set()
    for draw in range(40):
        frames = clips.clip(0, 4, np.random.default_rng(draw), interval=3)
        values = (frames[:, 0, 0, 0].astype(int) - 5) // 12
        assert frames.shape == (4, 16, 16, 3) and (np.diff(values) == 3).all()
        seen.add(int(values[0]))
    assert min(seen) == 0 and max(seen) == 10
    assert (clips.clip(0, 8, np.random.default_rng(1)) == clips.clip(0, 8, np.random.default_rng(1))).all()
    assert [int(c[0, 0, 0, 0] - 5) // 12 for c in clips.fixed_clips(8)] == [0, 8]
    assert [len(c) for c in clips.fixed_clips(8, interval=2)] == [8]
    with pytest.raises(ValueError, match="num_frames 21 at interval 1 does not fit"):
        clips.clip(0, 21, np.random.default_rng(0))
    with pytest.raises(UserError, match="is not a prepared data set"):
        FrameClips(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match='split is "test"|split is .test.'):
        FrameClips(tmp_path / "out", "test")
