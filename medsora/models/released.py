"""Reads weights of the released code: its parameter names and constructor settings become ours, or are refused."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from medsora.models.denoiser import HEAD_WIDTH, MedSora

WHOLE = {
    "x_embedder.proj.weight": "patch_embedding.weight",
    "x_embedder.proj.bias": "patch_embedding.bias",
    "t_embedder.mlp.0.weight": "timestep_embedding.enter.weight",
    "t_embedder.mlp.0.bias": "timestep_embedding.enter.bias",
    "t_embedder.mlp.2.weight": "timestep_embedding.leave.weight",
    "t_embedder.mlp.2.bias": "timestep_embedding.leave.bias",
    "final_layer.adaLN_modulation.1.weight": "final_layer.modulation.weight",
    "final_layer.adaLN_modulation.1.bias": "final_layer.modulation.bias",
    "final_layer.linear.weight": "final_layer.linear.weight",
    "final_layer.linear.bias": "final_layer.linear.bias",
    "pos_embed": "position_table",
}
IN_BLOCK = {
    "query_matrix.weight": "attention.query.weight",
    "key_matrix.weight": "attention.key.weight",
    "value_matrix.weight": "attention.value.weight",
    "norm1.weight": "norms.0.weight",
    "norm1.bias": "norms.0.bias",
    "norm2.weight": "norms.1.weight",
    "norm2.bias": "norms.1.bias",
    "norm3.weight": "norms.2.weight",
    "norm3.bias": "norms.2.bias",
    "adaLN_modulation.1.weight": "modulation.weight",
    "adaLN_modulation.1.bias": "modulation.bias",
    "mamba_hw.gated_fusion.gate_F1.weight": "spatial.gates.0.weight",
    "mamba_hw.gated_fusion.gate_F1.bias": "spatial.gates.0.bias",
    "mamba_hw.gated_fusion.gate_F2.weight": "spatial.gates.1.weight",
    "mamba_hw.gated_fusion.gate_F2.bias": "spatial.gates.1.bias",
}
IN_MIXER = {
    "in_proj.weight": "in_proj.weight",
    "conv1d.weight": "conv_weight",
    "conv1d.bias": "conv_bias",
    "dt_bias": "dt_bias",
    "A_log": "A_log",
    "D": "D",
    "norm.weight": "norm_weight",
    "out_proj.weight": "out_proj.weight",
}
ROTARY = "local_attention.rel_pos.inv_freq"
REQUIRED = ("input_size", "patch_size", "in_channels", "hidden_size", "d_state", "depth")
# Fixed in shape by the others, or about which frames the released training handed out; nothing here depends on them.
OPTIONAL = ("strip_size", "latent_num_frames", "latent_num_all", "use_local_attention", "use_local_cov")


def load_released(state_dict: Mapping[str, Tensor], config: Mapping, scan_order: str = "released") -> MedSora:
    """A denoiser in the released form with released weights.

    state_dict: released parameter names to tensors. config: the released constructor's settings by name: input_size
    (latent side), patch_size, in_channels, hidden_size, d_state, depth, and optionally strip_size (patch stride, equal
    to patch_size), latent_num_frames, latent_num_all, use_local_attention (on), use_local_cov.
    scan_order: "released" walks as the released code did in training, "spiral" true spirals.
    Returns the model in the dtype and on the device of the tensors.
    Raises ValueError for settings or parameters that are missing, unknown or of another shape.
    """
    settings = _settings(config, scan_order)
    model = MedSora(**settings)
    names = released_names(settings["depth"])
    missing = sorted(set(names) - set(state_dict))
    unexpected = sorted(set(state_dict) - set(names))
    if missing:
        raise ValueError(f"state_dict: {_listed(missing)} missing, wants the weights of {settings['depth']} blocks")
    if unexpected:
        raise ValueError(f"state_dict: {_listed(unexpected)} unexpected, wants released parameter names")

    renamed = {}
    for released, ours in names.items():
        tensor = state_dict[released]
        if ours is None:
            _check_rotary(released, tensor, settings["hidden_size"])
            continue
        wanted = released_shape(released, model.get_parameter(ours).shape)
        if tuple(tensor.shape) != wanted:
            raise ValueError(f"state_dict: {released} has shape {tuple(tensor.shape)}, wants {wanted}")
        renamed[ours] = tensor.detach().clone().reshape(model.get_parameter(ours).shape)
    dtypes = sorted({str(tensor.dtype) for tensor in renamed.values()})
    if len(dtypes) > 1:
        raise ValueError(f"state_dict: got tensors of {', '.join(dtypes)}, wants one dtype")
    model.load_state_dict(renamed, strict=True, assign=True)  # takes over the tensors, and with them their dtype
    return model


def released_names(depth: int) -> dict[str, str | None]:
    """Released parameter name to ours, None for a fixed table that we compute, for a model of `depth` blocks."""
    names: dict[str, str | None] = dict(WHOLE)
    for i in range(depth):
        block = f"blocks.{i}."
        names |= {block + released: block + ours for released, ours in IN_BLOCK.items()}
        for released_mixer, our_mixer in (("mamba_hw.", "spatial.mamba."), ("mamba_f.", "temporal.mamba.")):
            names |= {block + released_mixer + a: block + our_mixer + b for a, b in IN_MIXER.items()}
        names[block + ROTARY] = None
    return names


def released_shape(name: str, ours: torch.Size) -> tuple[int, ...]:
    """The released shape of a parameter, given ours: its depthwise convolutions carry a group axis of one."""
    return (ours[0], 1, ours[1]) if name.endswith("conv1d.weight") else tuple(ours)


def _settings(config: Mapping, scan_order: str) -> dict:
    missing = [name for name in REQUIRED if name not in config]
    unknown = sorted(set(config) - set(REQUIRED) - set(OPTIONAL))
    if missing:
        raise ValueError(f"config: {_listed(missing)} missing, wants {', '.join(REQUIRED)}")
    if unknown:
        raise ValueError(f"config: {_listed(unknown)} unknown, wants only {', '.join(REQUIRED + OPTIONAL)}")
    if scan_order not in ("released", "spiral"):
        raise ValueError(f"scan_order: got {scan_order!r}, wants 'released' or 'spiral'")
    if config.get("strip_size", config["patch_size"]) != config["patch_size"]:
        raise ValueError(f"config: strip_size is {config['strip_size']}, wants patch_size, {config['patch_size']}")
    if not config.get("use_local_attention", True):
        raise ValueError("config: use_local_attention is off, wants it on: the model has a local attention branch")
    if config["input_size"] % config["patch_size"]:
        raise ValueError(f"config: input_size is {config['input_size']}, wants a multiple of {config['patch_size']}")
    side = config["input_size"] // config["patch_size"]
    return {
        "in_channels": config["in_channels"],
        "patch_size": config["patch_size"],
        "hidden_size": config["hidden_size"],
        "depth": config["depth"],
        "state_size": config["d_state"],
        "head_dim": HEAD_WIDTH,
        "scan_order": scan_order,
        "temporal_bidirectional": False,
        "attention_heads": 1,
        "attention_output": False,
        "stored_grid": (side, side),
    }


def _check_rotary(name: str, tensor: Tensor, width: int) -> None:
    """The rotary frequencies are computed, not loaded: they must be the ones we compute."""
    expected = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    # Half-precision copies round them; another base or width would be off by far more.
    if tensor.shape != expected.shape or not torch.allclose(tensor.double(), expected, rtol=1e-2, atol=0):
        raise ValueError(f"state_dict: {name} holds other frequencies, wants 10000^(-2k / {width})")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    if len(names) > 3:
        return f"{shown} and {len(names) - 3} more are"
    return f"{shown} is" if len(names) == 1 else f"{shown} are"
