"""The split is by patient, stable, and never leaves a side empty when it need not."""

from hypothesis import given
from hypothesis import strategies as st

from medsora.data.manifest import Clip
from medsora.data.patients import assign_splits, join_folders, load_salt, patient_code


def clip(source, patient, salt="s"):
    return Clip("id", source, 0, patient_code(salt, patient), "", 10.0, 8, None, False, [], "")


def splits(clips, fraction=0.1, seed=0, fixed=None):
    assign_splits(clips, fixed or {}, fraction, seed)
    return {c.patient: c.split for c in clips}


@given(st.lists(st.integers(0, 30), min_size=2, max_size=40), st.floats(0.01, 0.9), st.integers(0, 5))
def test_sides(patients, fraction, seed):
    clips = [clip(f"{number}.mp4", str(patient)) for number, patient in enumerate(patients)]
    first = splits(clips, fraction, seed)
    assert all(first[c.patient] == c.split for c in clips)
    if len(first) > 1:
        assert set(first.values()) == {"train", "val"}
    else:
        assert set(first.values()) == {"train"}
    assert splits(clips[::-1], fraction, seed) == first


def test_fraction_is_met_and_others_do_not_move_a_patient():
    many = [clip(f"{n}.mp4", str(n)) for n in range(1000)]
    few = splits(many[:400], 0.2)
    whole = splits(many, 0.2)
    assert 0.16 < sum(side == "val" for side in whole.values()) / 1000 < 0.24
    assert all(whole[patient] == side for patient, side in few.items())
    assert splits(many, 0.2, seed=1) != whole
    assert set(splits(many, 0.0).values()) == {"train"}


def test_fixed_split_stands():
    clips = [clip("a", "p"), clip("b", "p")]
    assign_splits(clips, {"a": "train", "b": "val"}, 0.1, 0)
    assert [c.split for c in clips] == ["train", "val"]


def test_folder_joins_its_dicom_patient():
    clips = [
        clip("anna/echo.dcm", "ID7"),
        clip("anna/phone.mp4", "anna"),
        clip("x/1.dcm", "ID8"),
        clip("x/2.dcm", "ID9"),
    ]
    clips.append(clip("x/3.mp4", "x"))  # of two patients' folder nobody can tell
    join_folders(clips, "s")
    assert clips[1].patient == clips[0].patient == patient_code("s", "ID7")
    assert clips[4].patient == patient_code("s", "x")


def test_salt_is_drawn_once(tmp_path):
    first = load_salt(tmp_path / "a")
    assert load_salt(tmp_path / "a") == first != load_salt(tmp_path / "b")
    assert patient_code(first, "1") != patient_code(load_salt(tmp_path / "b"), "1")
    assert (tmp_path / "a" / "patient-salt.txt").stat().st_mode & 0o077 == 0
