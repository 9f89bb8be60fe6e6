"""The feature networks on weights made for the purpose: what they are shown, what they give, and what they refuse."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

from medsora.evaluation.features import I3D, Inception, Motion, VideoMAE, resized
from medsora.evaluation.inception import InceptionV3
from medsora.metrics import MotionFeatures

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def clips(seed=0, count=2, frames=16, height=20, width=24):
    return np.random.default_rng(seed).integers(0, 256, (count, frames, height, width, 3), dtype=np.uint8)


def stated(path):
    return f"{path}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"


def shown(batch, side):
    """The pictures a network should see, (B, T, 3, side, side) in [0, 1], one frame at a time."""
    frames = [
        functional.interpolate(torch.tensor(frame / 255.0).permute(2, 0, 1)[None], (side, side), mode="bilinear")[0]
        for clip in batch
        for frame in clip
    ]
    return torch.stack(frames).unflatten(0, batch.shape[:2]).float()


def test_resizing_is_bilinear_between_pixel_centres():
    batch = clips()
    torch.testing.assert_close(resized(batch, 33, "cpu"), shown(batch, 33), atol=1e-5, rtol=1e-5)
    whole = resized(batch[:, :, :20, :20], 20, "cpu")
    np.testing.assert_allclose(whole.permute(0, 1, 3, 4, 2) * 255, batch[:, :, :20, :20], atol=1e-3)


class Spy(nn.Module):
    """In place of I3D: its features are what it was shown, and how it was called."""

    def __init__(self, size: int = 400):
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        facts = torch.tensor(
            [float(x.shape[1]), float(x.shape[2]), float(x.shape[3]), float(x.shape[4])]
            + [float(rescale), float(resize), float(return_features)]
        )
        values = x.flatten(1)
        head = torch.cat([facts.expand(x.shape[0], 7), values.amin(1, True), values.amax(1, True)], 1)
        rest = values[:, :: max(1, values.shape[1] // (self.size - 9))][:, : self.size - 9]
        return torch.cat([head, rest], 1)


@pytest.fixture
def i3d(tmp_path):
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Spy()).save(str(path))
    return path


def test_i3d_is_shown_what_fvd_shows_it(i3d):
    batch = clips()
    network = I3D(stated(i3d))
    features = network(batch)["features"]
    assert features.shape == (2, 400) and features.dtype == np.float64
    np.testing.assert_array_equal(features[0, :7], [3, 16, 224, 224, 0, 0, 1])  # colours, frames, sides, flags
    video = (shown(batch, 224) * 2 - 1).permute(0, 2, 1, 3, 4).flatten(1)
    np.testing.assert_allclose(features[:, 7], video.amin(1), atol=1e-5)
    np.testing.assert_allclose(features[:, 9:], video[:, :: video.shape[1] // 391][:, :391], atol=1e-5)
    assert network.protocol["weights"]["sha256"] == hashlib.sha256(i3d.read_bytes()).hexdigest()


def test_i3d_runs_no_code_before_its_checksum_is_met(i3d, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was opened"))
    for given, words in ((str(i3d), "is a program"), (f"{i3d}#sha256={'1' * 64}", "wants 1111")):
        with pytest.raises(ValueError, match=words):
            I3D(given)


def test_i3d_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "i3d.pt"
    path.write_bytes(b"no program")
    with pytest.raises(ValueError, match="--i3d: .* is no TorchScript file"):
        I3D(stated(path))
    torch.jit.script(Spy(64)).save(str(path))
    with pytest.raises(ValueError, match=r"gave shape \(2, 64\), wants \(clips, 400\)"):
        I3D(stated(path))(clips(frames=9))


def tiny_config(**more):
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=96, num_labels=5)
    return VideoMAEConfig(**sizes, **more)


@pytest.mark.parametrize("kind", [VideoMAEForVideoClassification, VideoMAEModel])
def test_videomae_from_a_folder(tmp_path, kind):
    model = kind(tiny_config(image_size=32, patch_size=16, num_frames=4)).eval()
    model.save_pretrained(tmp_path)
    network = VideoMAE(str(tmp_path))
    batch = clips()
    features = network(batch)["features"]
    assert (network.size, network.shortest, features.shape) == (64, 4, (2, 64))
    pictures = shown(batch[:, [0, 5, 10, 15]], 32)
    with torch.no_grad():
        if kind is VideoMAEModel:
            wanted = model(pictures).last_hidden_state.mean(1)
        else:
            model.classifier = nn.Identity()
            wanted = model(pictures).logits
    np.testing.assert_allclose(features, wanted, atol=1e-5)


ORIGINAL = {
    "videomae.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "videomae.encoder.layer": "blocks",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "classifier": "head",
}


def original_layout(model):
    """A network's weights under the names of the VideoMAE project."""
    state = {}
    for name, tensor in model.state_dict().items():
        for new, old in ORIGINAL.items():
            name = name.replace(new, old)
        state[name] = tensor
    for number in range(model.config.num_hidden_layers):
        part = f"blocks.{number}.attention.attention."
        maps = [state.pop(f"{part}{name}.weight") for name in ("query", "key", "value")]
        state[f"blocks.{number}.attn.qkv.weight"] = torch.cat(maps)
        for name in ("query", "value"):
            state[f"blocks.{number}.attn.{name[0]}_bias"] = state.pop(f"{part}{name}.bias")
    return state


def test_videomae_from_the_original_file(tmp_path):
    model = VideoMAEForVideoClassification(tiny_config(patch_size=32, layer_norm_eps=1e-6)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    torch.save({"module": original_layout(model)}, tmp_path / "vit.pth")
    network = VideoMAE(str(tmp_path / "vit.pth"))
    batch = clips(count=1)
    model.classifier, model.fc_norm.eps = nn.Identity(), 1e-6
    with torch.no_grad():
        wanted = model(shown(batch, 224)).logits
    np.testing.assert_allclose(network(batch)["features"], wanted, atol=1e-4)
    torch.save({"module": original_layout(model) | {"blocks.0.norm1.bias": torch.zeros(3)}}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match="--videomae: .* is no VideoMAE that can be read"):
        VideoMAE(str(tmp_path / "vit.pth"))
    for content in (b"", b"no weights", pickle.dumps(print)):
        (tmp_path / "vit.pth").write_bytes(content)
        with pytest.raises(ValueError, match="--videomae: .* is no VideoMAE that can be read") as refused:
            VideoMAE(str(tmp_path / "vit.pth"))
        assert "weights_only" not in str(refused.value)  # no advice to run the file's code


def test_videomae_refuses_other_folders(tmp_path):
    model = VideoMAEModel(tiny_config(image_size=32, num_frames=4))
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="its config is of the kind 'vit'"):
        VideoMAE(str(tmp_path))
    config = tiny_config(image_size=32, num_frames=4)
    config.num_hidden_layers = 3
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not those its config describes"):
        VideoMAE(str(tmp_path))


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A file of drawn weights in pytorch-fid's layout, without the counters that older files lack."""
    torch.manual_seed(0)
    network = InceptionV3().eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("conv.weight"):
                tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
    path = tmp_path_factory.mktemp("inception") / "drawn.pth"
    torch.save({k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}, path)
    return network, path


def test_inception_is_shown_what_fid_shows_it(inception):
    network, path = inception
    batch = clips(count=1, frames=2)
    found = Inception(str(path))(batch)
    with torch.no_grad():
        features, scores = network(shown(batch, 299)[0] * 2 - 1)
    assert found["features"].shape == (2, 2048) and found["probabilities"].shape == (2, 1008)
    np.testing.assert_allclose(found["features"], features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], torch.softmax(scores, 1), rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="does not fit pytorch-fid's Inception"):
        torch.save({"fc.weight": torch.zeros(1008, 2048)}, path.with_name("part.pth"))
        Inception(str(path.with_name("part.pth")))


def test_inception_has_the_published_size_and_pools():
    network = InceptionV3()
    assert sum(p.numel() for p in network.parameters()) == 23_850_960  # torchvision's, with 1008 classes for 1000
    shapes, ones = [], torch.ones(1, 3, 299, 299)
    for name in ("Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"):
        getattr(network, name).register_forward_hook(lambda *args: shapes.append(tuple(args[2].shape[1:])))
    with torch.no_grad():
        network.eval()(ones)
        assert shapes == [(192, 71, 71), (288, 35, 35), (768, 17, 17), (2048, 8, 8)]
        for name, pool in (("Mixed_5b", "mean"), ("Mixed_7b", "mean"), ("Mixed_7c", "max")):
            block = getattr(network, name)
            x = torch.rand(1, block.branch_pool.conv.in_channels, 8, 8)
            corner = x[:, :, :2, :2]
            wanted = corner.mean((2, 3)) if pool == "mean" else corner.amax((2, 3))  # the rim's padding does not count
            pooled = block(x)[:, -block.branch_pool.conv.out_channels :, 0, 0]
            torch.testing.assert_close(pooled, block.branch_pool(wanted[:, :, None, None])[:, :, 0, 0])


def test_the_proxy_says_that_it_is_one():
    batch = clips(height=32, width=32)
    proxy = Motion()
    np.testing.assert_array_equal(proxy(batch)["features"][1], MotionFeatures()(batch[1]))
    assert proxy.protocol["proxy"] is True and "proxy" in proxy.title
