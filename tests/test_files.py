"""What a killed command leaves under a temporary name is cleared by the next; what another still writes is not."""

import json
import subprocess
import sys

import numpy as np
import pytest
from micro_model import micro_pipeline

from medsora.errors import run_command
from medsora.files import TEMPORARY_PREFIX, clear_leftovers, replacing, replacing_folder, save_tensors, write_text
from medsora.sample import main as sample

# A command that is killed while a file and a folder are being written.
KILLED = """
import os, signal, sys
from pathlib import Path
from medsora.files import replacing, replacing_folder
place = Path(sys.argv[1])
with replacing(place / "video.mp4") as file, replacing_folder(place / "vae") as folder:
    file.write_bytes(b"half a video")
    (folder / "config.json").write_text("half a configuration")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leftovers(folder):
    """The names of what is being written, or was when a command was killed."""
    hidden = [path for path in folder.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]
    return sorted(path.name for place in hidden for path in place.iterdir() if not path.name.startswith("."))


@pytest.fixture
def left(tmp_path):
    """A folder in which a command was killed."""
    place = tmp_path / "left"
    assert subprocess.run([sys.executable, "-c", KILLED, place]).returncode == -9
    assert leftovers(place) == ["vae", "video.mp4"]
    return place


def test_of_dead_and_living_commands(left):
    own = left / f"{TEMPORARY_PREFIX}notes"  # a name that is none of ours
    own.mkdir()
    with replacing(left / "sheet.png") as file, replacing_folder(left / "denoiser") as folder:
        clear_leftovers(left, left / "nowhere")
        file.write_bytes(b"a sheet")
        (folder / "config.json").write_text("{}")
        assert leftovers(left) == ["denoiser", "sheet.png"]
    assert sorted(path.name for path in left.iterdir()) == [own.name, "denoiser", "sheet.png"]
    assert (left / "sheet.png").read_bytes() == b"a sheet" and (left / "denoiser" / "config.json").is_file()


def test_what_a_writer_leaves_beside_its_file_is_cleared_too(tmp_path, monkeypatch):
    """The safetensors library writes to a temporary file of its own first."""

    def killed(tensors, path, **_):
        (path.parent / ".tmpAbC123").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(tmp_path / "a.safetensors", {})
    assert list(tmp_path.iterdir()) == []


def test_where_the_system_has_no_locks_nothing_is_cleared(left, monkeypatch):
    monkeypatch.setattr("medsora.files.fcntl", None)
    write_text(left / "notes.txt", "written all the same")
    clear_leftovers(left)
    assert leftovers(left) == ["vae", "video.mp4"] and (left / "notes.txt").read_text() == "written all the same"


def test_sampling_again_clears_what_a_killed_command_left(left, tmp_path):
    micro_pipeline().save_pretrained(tmp_path / "model")
    command = ["--model", str(tmp_path / "model"), "--steps", "1", "--num-videos", "1", "--output", str(left)]
    assert run_command(lambda: sample(command)) == 0
    names = ["contact-sheet.png", "samples.json", "video-00000.mp4"]
    assert sorted(path.name for path in left.iterdir()) == names
    assert subprocess.run([sys.executable, "-c", KILLED, left]).returncode == -9 and leftovers(left)
    assert run_command(lambda: sample(command)) == 0
    assert sorted(path.name for path in left.iterdir()) == names
    assert list(json.loads((left / "samples.json").read_text())["videos"]) == ["video-00000.mp4"]


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    write_text(tmp_path / "a.npy", "before")
    with pytest.raises(KeyError), replacing(tmp_path / "a.npy") as file:
        np.save(file, np.zeros(3))
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"] and (tmp_path / "a.npy").read_text() == "before"
