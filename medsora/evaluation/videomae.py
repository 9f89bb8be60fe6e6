"""VideoMAE as a feature network: from a folder that transformers saved, or the file of the original project."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from medsora.files import first_sentence

FRAMES, IMAGE = 16, 224  # what the original files were trained on; not written in them
HEAD_WIDTH, HEAD_WIDTH_GIANT, WIDTH_GIANT = 64, 88, 1408


def load_videomae(path: Path, option: str) -> nn.Module:
    """The network in evaluation mode: videos (B, frames, 3, side, side) in [0, 1] -> features (B, width).

    Features are the mean over tokens, normalised where the network has a norm behind that mean (fine-tuned ones do):
    what its classifier reads. Attributes: width, frames, side. Raises ValueError for files that do not fit.
    """
    try:
        model = _from_folder(path) if path.is_dir() else _from_original(path)
    except Exception as error:  # a damaged or foreign file shows in many exception types
        raise ValueError(f"{option}: {path} is no VideoMAE that can be read: {first_sentence(error)}") from error
    return VideoMAEFeatures(model).eval()


class VideoMAEFeatures(nn.Module):
    """See `load_videomae`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone = getattr(model, "videomae", model)
        self.norm = getattr(model, "fc_norm", None) or nn.Identity()
        config = model.config
        self.width, self.frames, self.side = config.hidden_size, config.num_frames, config.image_size

    def forward(self, videos: Tensor) -> Tensor:
        return self.norm(self.backbone(videos).last_hidden_state.mean(1))


def _from_folder(folder: Path) -> nn.Module:
    from transformers import AutoConfig, AutoModel, VideoMAEForVideoClassification

    config = AutoConfig.from_pretrained(folder)
    if config.model_type != "videomae":
        raise ValueError(f"its config is of the kind {config.model_type!r}, wants 'videomae'")
    fine_tuned = "VideoMAEForVideoClassification" in (config.architectures or [])
    kind = VideoMAEForVideoClassification if fine_tuned else AutoModel
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    wrong = [*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])]
    if wrong:
        raise ValueError(f"its weights are not those its config describes, such as {wrong[0]}")
    return model


def _from_original(file: Path) -> nn.Module:
    """Weights as the VideoMAE project saves them, such as vit_g_hybrid_pt_1200e_ssv2_ft.pth; they tell the sizes."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    state = torch.load(file, map_location="cpu", weights_only=True)
    state = next((state[key] for key in ("model", "module") if key in state), state)
    width, _, tubelet, patch, _ = state["patch_embed.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    config = VideoMAEConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // (HEAD_WIDTH_GIANT if width == WIDTH_GIANT else HEAD_WIDTH),
        intermediate_size=len(state["blocks.0.mlp.fc1.bias"]),
        patch_size=patch,
        tubelet_size=tubelet,
        num_frames=FRAMES,
        image_size=IMAGE,
        use_mean_pooling=True,
        num_labels=len(state["head.bias"]),
        layer_norm_eps=1e-6,
    )
    model = VideoMAEForVideoClassification(config)
    model.load_state_dict(_renamed(state, depth), strict=True)
    model.fc_norm.eps = 1e-6
    return model


def _renamed(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The original names as transformers has them; the joined query, key and value maps are taken apart."""
    names = {"patch_embed.proj": "videomae.embeddings.patch_embeddings.projection", "fc_norm": "fc_norm",
             "head": "classifier"}  # fmt: skip
    parts = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}  # fmt: skip
    renamed = {}
    for number in range(depth):
        before, after = f"blocks.{number}.", f"videomae.encoder.layer.{number}."
        names |= {before + old: after + new for old, new in parts.items()}
        maps = state[f"{before}attn.qkv.weight"].chunk(3)
        for name, weight in zip(("query", "key", "value"), maps, strict=True):
            renamed[f"{after}attention.attention.{name}.weight"] = weight
        for name in ("query", "value"):  # keys have no bias
            renamed[f"{after}attention.attention.{name}.bias"] = state[f"{before}attn.{name[0]}_bias"]
    for old, new in names.items():
        renamed |= {f"{new}.{end}": state[f"{old}.{end}"] for end in ("weight", "bias")}
    return renamed
