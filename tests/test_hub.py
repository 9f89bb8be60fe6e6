"""Saved models bring their card, and what goes to a hub is exactly the model: a hub of our own, on this machine."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.hf_api
import numpy as np
import pytest
import yaml
from micro_model import micro_pipeline

from medsora import MedSoraPipeline
from medsora.config import read_command_line
from medsora.data.manifest import Clip, Manifest
from medsora.errors import UserError
from medsora.hub import require_only_safe_files
from medsora.model_card import plain_card, run_card, write_run_card

STAGES = {
    "vae": {"steps": 9, "parameters": 12345, "psnr": 31.25, "clips": 1, "split": "held-out"},
    "denoiser": {"steps": 20, "parameters": 678, "probed": "held-out", "denoising_loss": {"mse": 0.1234},
                 "baseline": {"step": 5, "mse": 0.5}},
    "results": {"distances": {"generated": 12.5, "mean clip": 40.0}, "real_clips": 6},
}  # fmt: skip


def a_manifest():
    """Clips of two patients in training and one held out; names that must not get out."""

    def clip(number, patient, split):
        return Clip(str(number), f"SECRET/{number}.dcm", 0, patient, split, 10.0, 20, "ab"[number % 2], False, [], "")

    clips = [clip(0, "SECRET1", "train"), clip(1, "SECRET1", "train"), clip(2, "SECRET2", "train"), clip(3, "P", "val")]
    return Manifest({}, True, ["A note."], clips)


def settings_of(*more):
    return read_command_line(["--data", "/home/SECRET/videos", "--output", "/home/SECRET/run", *more])[0]


def metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_run_card_says_what_the_model_was_made_from_and_names_nobody():
    card = run_card(settings_of("--license", "cc-by-4.0"), a_manifest(), STAGES)
    assert "SECRET" not in card and "/home" not in card
    for words in (
        "3 clips, 60 frames, 3 recordings, 2 patients", "1 clip, 20 frames, 1 recording, 1 patient", "by patient",
        "a, b", "31.25 dB", "0.1234", "0.5000", "12.5", "40", "9 steps, 12,345 parameters", "A note.",
        "For research only", "not be used for diagnosis", "near copies of training clips",
    ):  # fmt: skip
        assert words in card, words
    assert metadata(card)["license"] == "cc-by-4.0" and metadata(card)["library_name"] == "diffusers"


def test_what_is_not_known_is_said_so(tmp_path):
    card = run_card(settings_of(), a_manifest(), {"vae": None, "denoiser": None, "results": None})
    assert metadata(card)["license"] == "unknown" and "Nothing yet" in card and "not finished" in card
    (tmp_path / "data").mkdir()
    a_manifest().write(tmp_path / "data")
    write_run_card(tmp_path, settings_of(), tmp_path / "data", STAGES)
    assert "31.25 dB" in (tmp_path / "README.md").read_text()
    assert "Not recorded with this model" in plain_card(micro_pipeline())


def test_conditions_are_settings_too():
    first = ("--denoiser.first_frame_conditioning", "true", "--denoiser.first_frame_noise", "0.1")
    card = run_card(settings_of("--prepare.num_frames", "16", *first), a_manifest(), STAGES)
    given = "first frames (1 or 8), with noise 0.1, withheld in 20% of samples"
    assert f"| conditioning | class, withheld in 10% of samples; {given} |" in card
    plain = run_card(settings_of("--denoiser.model", '{"num_classes": 0}'), a_manifest(), STAGES)
    assert "| conditioning | none |" in plain


def test_a_patient_on_both_sides_is_told():
    manifest = a_manifest()
    manifest.clips[3].patient = "SECRET1"
    assert "1 patient on both sides: a check of fitting" in run_card(settings_of(), manifest, STAGES)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    micro_pipeline().save_pretrained(folder)
    return folder


def test_the_card_goes_where_the_model_goes_and_paths_do_not(model, tmp_path):
    (model / "README.md").write_text("---\nlicense: unknown\n---\nmine\n")
    MedSoraPipeline.from_pretrained(model).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text().endswith("mine\n")
    files = [path for path in (tmp_path / "again").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}
    assert not [path for path in files if str(model).encode() in path.read_bytes()]
    made = [MedSoraPipeline.from_pretrained(folder)(num_inference_steps=2, progress=False).videos
            for folder in (model, tmp_path / "again")]  # fmt: skip
    assert np.array_equal(*made)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload needs; it keeps what it is sent in `server.files`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        if self.path == "/api/repos/create":
            self._answer({"url": f"{self.server.address}/me/model", "name": "me/model", "id": "me/model"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            plain = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self._answer({"files": plain})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"{self.server.address}/me/model/commit/1", "commitOid": "1", "success": True})
        else:
            self._answer({"errors": [], "warnings": []})

    def do_GET(self):
        self._answer({"id": "me/model", "modelId": "me/model", "sha": "0", "siblings": []})

    def _answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address, server.files, server.asked = f"http://127.0.0.1:{server.server_port}", {}, []
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_exactly_the_model_and_its_card_are_uploaded(model, hub, tmp_path, way):
    (model / "README.md").write_text("---\nlicense: unknown\n---\nmine\n")
    (model / "patient-salt.txt").write_text("a secret beside the model, as in a run's folder")
    pipeline = MedSoraPipeline.from_pretrained(model)
    if way == "push_to_hub":
        pipeline.push_to_hub("me/model", token="hf_testing")
    else:
        pipeline.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/model", token="hf_testing")
    assert set(hub.files) == {
        "README.md", "model_index.json", "scheduler/scheduler_config.json", "vae/config.json", "denoiser/config.json",
        "vae/diffusion_pytorch_model.safetensors", "denoiser/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert hub.files["README.md"].endswith(b"mine\n")
    for name, content in hub.files.items():
        assert str(model).encode() not in content, name
        (tmp_path / "from hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from hub" / name).write_bytes(content)
    made = [MedSoraPipeline.from_pretrained(folder)(num_inference_steps=2, progress=False).videos
            for folder in (model, tmp_path / "from hub")]  # fmt: skip
    assert np.array_equal(*made)
    created = json.loads(next(body for path, _, body in hub.asked if path == "/api/repos/create"))
    assert created["name"] == "model" and created.get("private", created.get("visibility") == "private")
    assert {token for _, token, _ in hub.asked} == {"Bearer hf_testing"}


def test_other_files_are_never_published(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "weights.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"vae/weights\.pt"):
        require_only_safe_files(tmp_path)
