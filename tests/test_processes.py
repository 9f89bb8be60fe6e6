"""Two processes leave what one leaves: latents, videos, sums; what a killed one had done is found again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import shared_work
import torch
from micro_model import micro_pipeline

from medsora.data.readers import read_video
from medsora.errors import UserError
from medsora.files import file_sha256
from medsora.processes import ALONE, Processes, RecordParts, joined_processes, local_device, require_enough

PROGRAM = Path(shared_work.__file__)


def launched(processes, *command):
    """A program under torchrun; as many threads each as this process has, for the same bits."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    paths = os.pathsep.join([str(PROGRAM.parents[1]), str(PROGRAM.parent)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [*launcher, *map(str, command)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder in which one process and two did the same work, and what the two said."""
    folder = tmp_path_factory.mktemp("both")
    micro_pipeline().save_pretrained(folder / "model")
    assert shared_work.main(folder) == 0
    done = launched(2, PROGRAM, folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_processes_encode_the_latents_of_one(both):
    one, two = (files_of(both[0] / f"data-of-{count}") for count in (1, 2))
    assert one.keys() == two.keys() and sum(name.startswith("latents/") for name in one) == 5
    for name in one.keys() - {"latents.json"}:
        assert one[name] == two[name], name
    assert json.loads(one["latents.json"]) == json.loads(two["latents.json"])
    assert json.loads(two["latents.json"])["complete"]


def test_two_processes_sample_the_videos_of_one(both):
    """By their frames: the encoder's bytes may differ from one run to the next of the same process."""
    one, two = (both[0] / f"samples-of-{count}" for count in (1, 2))
    names = [f"video-0000{i}.mp4" for i in range(5)]
    assert sorted(files_of(two)) == sorted(files_of(one)) == ["contact-sheet.png", "samples.json", *names]
    records = [json.loads((folder / "samples.json").read_text()) for folder in (one, two)]
    assert records[0]["settings"] == records[1]["settings"] and sorted(records[1]["videos"]) == names
    for name in names:
        frames = [read_video(folder / name).frames.astype(int) for folder in (one, two)]
        assert abs(frames[0] - frames[1]).mean() < 1 < abs(frames[0] - frames[0].mean()).mean(), name
        assert records[1]["videos"][name]["sha256"] == file_sha256(two / name)
    assert both[1].stdout.count("sampling  5 video(s)") == 1  # only the first process speaks


def test_what_processes_exchange(both):
    one, two = (json.loads((both[0] / f"found-of-{count}.json").read_text()) for count in (1, 2))
    assert one["shares"] == [list(range(7))] and two["shares"] == [[0, 2, 4, 6], [1, 3, 5]]
    assert one["from_first"] == two["from_first"] == 0


def test_latents_that_killed_processes_had_done_are_not_made_again(both, tmp_path):
    data = shutil.copytree(both[0] / "data-of-2", tmp_path / "data")
    index = json.loads((data / "latents.json").read_text())
    whole, made = json.dumps(index), [index["clips"].popitem() for _ in range(3)]
    (data / "latents.json").write_text(json.dumps(index | {"complete": False}))
    for rank, done in enumerate((made[:2], made[2:])):
        RecordParts(data / "latents.json", Processes(rank, 2)).write(dict(done))
    (data / "latents.part-00002.json").write_text('{"half a ')
    before = {path: path.stat().st_mtime_ns for path in (data / "latents").iterdir()}
    shared_work.prepare([*shared_work.PREPARE, "--output", str(data), "--vae", str(both[0] / "model" / "vae")])
    assert before == {path: path.stat().st_mtime_ns for path in (data / "latents").iterdir()}
    assert json.loads((data / "latents.json").read_text()) == json.loads(whole)
    assert not list(data.glob("*.part-*"))


def test_videos_that_killed_processes_had_made_are_not_made_again(both, tmp_path):
    folder = shutil.copytree(both[0] / "samples-of-2", tmp_path / "samples")
    record = json.loads((folder / "samples.json").read_text())
    whole, made = json.dumps(record), record["videos"].popitem()
    (folder / "samples.json").write_text(json.dumps(record))
    RecordParts(folder / "samples.json", Processes(1, 2)).write(dict([made]))
    before = (folder / made[0]).stat().st_mtime_ns
    again = ["--model", str(both[0] / "model"), *shared_work.SAMPLE, "--output", str(folder)]
    assert shared_work.sample(again) == 0
    assert (folder / made[0]).stat().st_mtime_ns == before and not list(folder.glob("*.part-*"))
    assert json.loads((folder / "samples.json").read_text()) == json.loads(whole)


def test_more_processes_than_windows_is_one_sentence(tmp_path):
    few = ("--prepare.windows_per_clip", "1", "--prepare.flips", "false", "--vae.batch_size", "2")
    refused = launched(2, "-m", "medsora.train", "--output", tmp_path / "run", *few)
    assert refused.returncode != 0 and "exitcode  : 2" in refused.stderr.replace("exitcode: 2", "exitcode  : 2")
    told = [line for line in refused.stderr.splitlines() if line.startswith("error")]
    assert len(told) == 1 and "processes: got 2, wants at most 1, the number of training windows" in told[0]
    assert "medsora/" not in "".join(line for line in refused.stderr.splitlines() if line.strip().startswith("File"))


def test_alone_there_is_nothing_to_exchange():
    with joined_processes() as processes:
        assert processes is ALONE and processes.is_first and processes.share([1, 2]) == [1, 2]


def test_more_processes_than_items_or_gpus_are_refused(monkeypatch):
    require_enough(3, 3, "clips")
    with pytest.raises(UserError, match="processes: got 4, wants at most 3, the number of clips"):
        require_enough(4, 3, "clips")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (local_device("auto"), local_device("cpu"), local_device("cuda:0")) == ("cuda:1", "cpu", "cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"3 processes on a machine of 2 GPU"):
        local_device("auto")
