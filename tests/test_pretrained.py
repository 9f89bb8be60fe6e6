"""Parts of others: found, held to their checksums, and missed in one sentence that says what to download."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file

from medsora import pretrained
from medsora.pretrained import PARTS, advice, locate, sha256_of


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def weights(tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_file_and_its_folder_have_the_checksum_of_the_file(weights):
    (weights.parent / "config.json").write_text("{}")
    (weights.parent / "pytorch_model.bin").write_bytes(b"the same in another format")
    assert sha256_of(weights) == sha256_of(weights.parent) == digest(weights)
    found = locate("dino", f"{weights.parent}#sha256={digest(weights).upper()}", "encoder")
    assert found.path == weights.parent and found.sha256 == digest(weights)


def test_several_files_have_the_checksum_of_their_list(weights):
    torch.save({"b": torch.zeros(1)}, weights.parent / "a.pth")
    listed = f"{digest(weights.parent / 'a.pth')}  a.pth\n{digest(weights)}  model.safetensors\n"
    assert sha256_of(weights.parent) == hashlib.sha256(listed.encode()).hexdigest()


def test_a_changed_file_is_hashed_again(weights):
    before = sha256_of(weights)
    weights.write_bytes(weights.read_bytes() + b" ")
    assert sha256_of(weights) == digest(weights) != before


def test_another_checksum_is_refused(weights):
    with pytest.raises(ValueError, match=f"encoder: .* has the SHA-256 {digest(weights)}, wants {'0' * 64}"):
        locate("dino", f"{weights}#sha256={'0' * 64}", "encoder")
    with pytest.raises(ValueError, match="encoder: got 'abc' after #sha256=, wants the 64 hex digits"):
        locate("dino", f"{weights}#sha256=abc", "encoder")


@pytest.mark.parametrize("name", sorted(name for name, part in PARTS.items() if part.digits))
def test_a_published_name_holds_the_file_to_its_digits(tmp_path, name):
    (file_name, digits), *_ = PARTS[name].digits
    assert digits in file_name
    (tmp_path / file_name).write_bytes(b"cut off")
    for given in (tmp_path, tmp_path / file_name):
        with pytest.raises(ValueError, match=f"weights: .*{file_name} has the SHA-256 .*, wants {digits}"):
            locate(name, given, "weights")
    (tmp_path / file_name).rename(tmp_path / "mine.pth")
    assert locate(name, tmp_path / "mine.pth", "weights").sha256 == digest(tmp_path / "mine.pth")


def test_a_program_needs_a_stated_checksum(tmp_path):
    file = tmp_path / "i3d_torchscript.pt"
    file.write_bytes(b"a program")
    with pytest.raises(ValueError, match="i3d: .* is a program .* only if you state the checksum"):
        locate("i3d", file, "i3d")
    assert locate("i3d", f"{file}#sha256={digest(file)}", "i3d").path == file


@pytest.mark.parametrize("name", sorted(PARTS))
def test_what_is_not_there_is_told_with_what_to_download(tmp_path, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    stated = f"#sha256={'0' * 64}" if PARTS[name].runs_code else ""
    for given in (str(tmp_path / "nothing"), "somebody/something", "somebody/something/weights.pth"):
        with pytest.raises(ValueError) as caught:
            locate(name, given + stated, "--part")
        said = str(caught.value)
        assert said.startswith("--part: ") and given in said and said.endswith(advice(name, "--part"))
        assert "\n" not in said and PARTS[name].download in said


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    from medsora.alignment.representation import load_encoder
    from medsora.evaluation.features import VideoMAE

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for load, option in ((load_encoder, "representation_weights"), (VideoMAE, "--videomae")):
        with pytest.raises(ValueError, match=f"{option}: wants transformers, which is not installed: pip install"):
            load("facebook/dinov2-base")


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no weights .*; download config.json and model.safetensors"):
        locate("dino", tmp_path, "encoder")


def test_the_vae_is_found_within_its_pipeline(weights):
    folder = weights.parent / "CogVideoX" / "vae"
    folder.mkdir(parents=True)
    weights.rename(folder / "diffusion_pytorch_model.safetensors")
    for given, subfolder in ((folder.parent, None), (folder.parent, "vae"), (folder, None)):
        assert locate("cogvideox", given, "vae", subfolder).path == folder


def test_a_hub_name_is_loaded_by_the_hub_library_and_held_to_its_checksum(weights, monkeypatch):
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(weights.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert locate("dino", f"facebook/dinov2-base#sha256={digest(weights)}", "encoder").path == weights.parent
    assert asked == {"facebook/dinov2-base": ["*.json", "*.safetensors"]}
    (weights.parent / "vae").mkdir()
    weights.rename(weights.parent / "vae" / weights.name)
    assert locate("cogvideox", "THUDM/CogVideoX-2b", "vae").path == weights.parent / "vae"
    assert asked["THUDM/CogVideoX-2b"] == ["vae/*.json", "vae/*.safetensors"]
    with pytest.raises(ValueError, match="wants 0000"):
        locate("cogvideox", f"THUDM/CogVideoX-2b#sha256={'0' * 64}", "vae")


class HubOfOneFile(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: somebody/networks holds within/inception.pth."""

    CONTENT = b"a network's weights"

    def do_GET(self):
        self.server.asked.append((self.command, self.path))
        known = self.path == "/somebody/networks/resolve/main/within/inception.pth"
        self.send_response(200 if known else 404)
        self.send_header("ETag", '"1234"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.CONTENT) if known else 0))
        self.end_headers()
        if known and self.command == "GET":
            self.wfile.write(self.CONTENT)

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


def test_a_file_of_a_repository_is_loaded_once_and_held_to_its_checksum(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubOfOneFile)
    server.asked = []
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    place = f"http://127.0.0.1:{server.server_port}" + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    given, right = "somebody/networks/within/inception.pth", hashlib.sha256(HubOfOneFile.CONTENT).hexdigest()
    try:
        for _ in range(2):
            found = locate("inception", f"{given}#sha256={right}", "--inception")
            assert found.sha256 == right and found.path.read_bytes() == HubOfOneFile.CONTENT
        assert [method for method, _ in server.asked].count("GET") == 1
        with pytest.raises(ValueError, match=f"has the SHA-256 {right}, wants 0000"):
            locate("inception", f"{given}#sha256={'0' * 64}", "--inception")
        with pytest.raises(ValueError, match="i3d: somebody/networks/a.pt is a program"):
            locate("i3d", "somebody/networks/a.pt", "--i3d")
        with pytest.raises(ValueError, match=r"the hub did not give it \(.*; download pt_inception"):
            locate("inception", "somebody/networks/other.pth", "--inception")
        asked = len(server.asked)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "weights").mkdir()
        with pytest.raises(ValueError, match="cannot load 'weights/i3d/inception.pth', there is no such path; downl"):
            locate("inception", "weights/i3d/inception.pth", "--inception")  # it begins like a path here
        assert len(server.asked) == asked
    finally:
        server.shutdown()
        server.server_close()


def test_hashes_are_computed_once(weights, monkeypatch):
    assert sha256_of(weights) == sha256_of(weights)
    monkeypatch.setattr(pretrained, "file_sha256", lambda path: pytest.fail("hashed again"))
    assert sha256_of(weights) == digest(weights)
