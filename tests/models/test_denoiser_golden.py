"""The denoiser against numbers of the released code, under its own scan order and under true spirals."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from medsora.models import MedSora, load_released
from medsora.models.conditioning import position_table
from medsora.models.released import released_names

GOLDEN = Path(__file__).parents[1] / "golden"
ORDERS = ("spiral", "released")
# The timestep's sinusoid is float32, and its last bit the processor's: such sums over all tokens, with cancellation,
# show that, by up to 6e-6 among instruction sets.
ONE_A_HEAD = ("A_log", "dt_bias")


def golden(order):
    """Weights, settings and the rest of one file."""
    path = GOLDEN / f"denoiser_{order}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    assert metadata["scan"] == order
    weights = {name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")}
    return weights, json.loads(metadata["config"]), tensors


def relative_error(ours, expected):
    ours, expected = ours.detach().double(), expected.double()
    return ((ours - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("order", ORDERS)
def test_values_gradients_and_streams_agree(order, dtype, tolerance):
    weights, config, tensors = golden(order)
    model = load_released({name: value.to(dtype) for name, value in weights.items()}, config, scan_order=order)
    streams = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: streams.append(output[0]))
    x = tensors["x"].to(dtype).requires_grad_()
    output = model(x, tensors["t"], return_hidden=True)
    output.sample.backward(tensors["grad_out"].to(dtype))

    assert output.sample.dtype == dtype
    assert relative_error(output.sample, tensors["out"]) < tolerance
    assert relative_error(x.grad, tensors["grad_x"]) < tolerance
    assert len(output.hidden) == len(streams) == config["depth"]
    frames = config["latent_num_frames"]  # the files keep the streams of the video's own frames
    for i, (hidden, stream) in enumerate(zip(output.hidden, streams, strict=True)):
        assert relative_error(hidden[:, :frames], tensors[f"spatial.{i}"]) < tolerance
        assert relative_error(stream.view(hidden.shape)[:, :frames], tensors[f"block.{i}"]) < tolerance
    names = released_names(config["depth"])
    recorded = [name.removeprefix("grad.") for name in tensors if name.startswith("grad.")]
    assert len(recorded) == 10 * config["depth"]
    for name in recorded:
        expected = tensors[f"grad.{name}"]
        gradient = model.get_parameter(names[name]).grad.reshape(expected.shape)
        allowed = max(tolerance, 1e-5) if name.endswith(ONE_A_HEAD) else tolerance
        assert relative_error(gradient, expected) < allowed, name


def test_the_two_scan_orders_differ():
    weights, config, tensors = golden("spiral")
    assert relative_error(load_released(weights, config)(tensors["x"], tensors["t"]).sample, tensors["out"]) > 1e-3


def test_the_stored_position_table_is_the_one_we_compute():
    weights, config, tensors = golden("spiral")
    torch.testing.assert_close(position_table(4, 4, 64), weights["pos_embed"][0], rtol=0, atol=1e-7)
    model = load_released(weights, config, "spiral")
    assert not model.position_table.requires_grad
    wide = model(torch.randn(1, 2, 4, 8, 12), torch.tensor([3])).sample  # a grid the table is not for
    assert wide.shape == (1, 2, 8, 8, 12)


def test_loading_leaves_the_given_tensors_alone():
    weights, config, _ = golden("spiral")
    before = {name: value.clone() for name, value in weights.items()}
    model = load_released(weights, config, "spiral")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(weights[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("blocks.1.mamba_f.D"), "blocks.1.mamba_f.D is missing"),
        (lambda w: w.pop("blocks.2.local_attention.rel_pos.inv_freq"), "inv_freq is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra is unexpected"),
        (
            lambda w: w.update(pos_embed=torch.zeros(1, 25, 64)),
            r"pos_embed has shape \(1, 25, 64\), wants \(1, 16, 64\)",
        ),
        (
            lambda w: w.update({"blocks.0.mamba_hw.conv1d.weight": torch.zeros(160, 4)}),
            r"conv1d.weight has shape \(160, 4\), wants \(160, 1, 4\)",
        ),
        (lambda w: w["blocks.0.local_attention.rel_pos.inv_freq"].mul_(2), "holds other frequencies"),
        (lambda w: w.update({"blocks.0.norm1.bias": torch.zeros(64).half()}), "wants one dtype"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    weights, config, _ = golden("spiral")
    change(weights)
    with pytest.raises(ValueError, match=message):
        load_released(weights, config, "spiral")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"depth": None}, "depth is missing"),
        ({"depth": 4}, "missing, wants the weights of 4 blocks"),
        ({"depth": 2}, "unexpected"),
        ({"dropout": 0.1}, "dropout is unknown"),
        ({"strip_size": 1}, "strip_size is 1"),
        ({"use_local_attention": False}, "use_local_attention is off"),
        ({"input_size": 7}, "input_size is 7"),
        ({"d_state": 32}, "in_proj.weight has shape"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    weights, config, _ = golden("spiral")
    config = {name: value for name, value in {**config, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_released(weights, config, "spiral")


def test_scan_orders_that_were_never_released_are_refused():
    weights, config, _ = golden("spiral")
    with pytest.raises(ValueError, match="scan_order: got 'raster'"):
        load_released(weights, config, "raster")


@pytest.mark.parametrize("name, count", [("S", 43_758_784), ("B", 86_466_304), ("L", 171_881_344), ("XL", 342_711_424)])
def test_published_sizes_have_the_published_number_of_parameters(name, count):
    with torch.device("meta"):
        model = MedSora.released_preset(name)
    assert model.num_parameters() == count
    assert model.num_parameters(only_trainable=True) == count - 64 * 512
