"""The denoiser as its users meet it: any size, conditions, checkpointing, number types, saving, and wrong inputs."""

import copy

import pytest
import torch
from sampling import sampled

from medsora.models import MedSora

SMALL = dict(in_channels=4, patch_size=2, hidden_size=64, depth=2, state_size=8, head_dim=32)


def build(seed=0, **overrides):
    """A small denoiser with every parameter drawn, the zero-initialised ones too."""
    torch.manual_seed(seed)
    model = MedSora(**{**SMALL, **overrides})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name.endswith(("modulation.weight", "final_layer.linear.weight")):
                parameter.normal_(std=0.1)
    return model


def inputs(batch=2, frames=3, height=4, width=6, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, frames, 4, height, width, generator=generator, dtype=dtype)
    return sample, torch.randint(0, 1000, (batch,), generator=generator)


SIZES = [(f, h, w) for f in (1, 2, 5, 9) for h in (2, 4, 10) for w in (2, 6, 14)]


@pytest.mark.parametrize("frames, height, width", sampled(SIZES, 8))
@pytest.mark.parametrize(
    "planes, order", [(("fw", "fh"), "spiral"), (("hw",), "raster"), (("fw", "fh", "hw"), "released")]
)
def test_any_size_and_any_planes(frames, height, width, planes, order):
    model = build(planes=planes, scan_order=order)
    sample, t = inputs(1, frames, height, width)
    output = model(sample, t, return_hidden=True)
    assert output.sample.shape == (1, frames, 8, height, width) and output.sample.isfinite().all()
    assert len(output.hidden) == 2 and output.hidden[0].shape == (1, frames, height * width // 4, 64)
    assert model(sample, t).hidden is None


def test_videos_of_a_batch_do_not_meet():
    model = build()
    sample, t = inputs(3)
    together = model(sample, t).sample
    alone = torch.cat([model(sample[i : i + 1], t[i : i + 1]).sample for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_time_is_scanned_one_way_or_both():
    sample, t = inputs(1, frames=4)
    sample.requires_grad_()
    seen = {}
    for both in (False, True):
        model = build(depth=1, temporal_bidirectional=both, planes=("hw",))  # planes inside a frame: time is the scan's
        (gradient,) = torch.autograd.grad(model(sample, t).sample[0, 1].sum(), sample)
        seen[both] = gradient[0].abs().sum((1, 2, 3)).gt(0).tolist()
    assert seen == {False: [True, True, False, False], True: [True, True, True, True]}


def test_block_i_walks_spiral_i_mod_8():
    model = MedSora(**{**SMALL, "depth": 10})
    assert [block.spatial.variant for block in model.blocks] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]


def test_a_fresh_model_predicts_zero_and_learns_at_the_first_step():
    torch.manual_seed(0)
    model = MedSora(**SMALL)
    sample, t = inputs()
    output = model(sample, t).sample
    assert output.abs().max() == 0
    (output - 1).square().mean().backward()
    assert model.final_layer.linear.weight.grad.abs().max() > 0


def test_every_parameter_takes_part():
    model = build(num_classes=3, first_frame_conditioning=True)
    with torch.no_grad():
        model.patch_embedding.weight.normal_(std=0.1)
    sample, t = inputs()
    output = model(
        sample, t, class_labels=torch.tensor([0, 3]), first_frames=sample.flip(0), first_frames_mask=torch.ones(2, 3)
    )
    output.sample.square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


def test_no_label_is_the_dropped_label():
    model = build(num_classes=3)
    with torch.no_grad():
        model.label_embedding.table.weight.normal_()
    sample, t = inputs()
    none = model(sample, t).sample
    dropped = model(sample, t, class_labels=torch.tensor([3, 3])).sample
    labelled = model(sample, t, class_labels=torch.tensor([3, 1])).sample
    torch.testing.assert_close(none, dropped, rtol=0, atol=0)
    torch.testing.assert_close(none[0], labelled[0], rtol=1e-5, atol=1e-6)
    assert (none[1] - labelled[1]).abs().max() > 1e-3


def test_given_frames_start_silent_then_count_only_where_the_mask_says():
    model = build(first_frame_conditioning=True)
    sample, t = inputs()
    given = torch.randn_like(sample)
    mask = torch.zeros(2, 3)
    mask[:, 0] = 1
    plain = model(sample, t).sample
    torch.testing.assert_close(plain, model(sample, t, first_frames=given, first_frames_mask=mask).sample)
    assert model.patch_embedding.weight.shape[1] == 9 and model.patch_embedding.weight[:, 4:].abs().max() == 0

    with torch.no_grad():
        model.patch_embedding.weight.normal_(std=0.1)
    told = model(sample, t, first_frames=given, first_frames_mask=mask).sample
    assert (told - model(sample, t).sample).abs().max() > 1e-3
    given[:, 1:] = float("nan")  # not given: must not be read
    torch.testing.assert_close(told, model(sample, t, first_frames=given, first_frames_mask=mask).sample)


def test_gradient_checkpointing_recomputes_each_block_and_changes_nothing():
    sample, t = inputs(dtype=torch.float64)
    gradients, calls = {}, {}
    for checkpointing in (False, True):
        model = build().double()
        if checkpointing:
            model.enable_gradient_checkpointing()
        count = calls.setdefault(checkpointing, [0, 0])
        for i, block in enumerate(model.blocks):
            block.spatial.register_forward_hook(lambda *_, i=i, count=count: count.__setitem__(i, count[i] + 1))
        output = model(sample, t, return_hidden=True)
        loss = output.sample.square().mean() + sum(h.square().mean() for h in output.hidden)
        assert count == [1, 1]
        loss.backward()
        gradients[checkpointing] = {name: p.grad for name, p in model.named_parameters()}
    assert calls == {False: [1, 1], True: [2, 2]}
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], gradient, rtol=1e-12, atol=1e-14)
    model.disable_gradient_checkpointing()
    model(sample, t).sample.sum().backward()
    assert calls[True] == [3, 3]


def test_checkpointing_keeps_less_for_the_backward_pass():
    sample, t = inputs()
    kept = {}
    for checkpointing in (False, True):
        model = build(depth=4)
        if checkpointing:
            model.enable_gradient_checkpointing()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            model(sample, t)
        kept[checkpointing] = sum(sizes)
    assert kept[True] < kept[False] / 5


def test_bfloat16_stays_near_float32():
    sample, t = inputs()
    model = build()
    exact = model(sample, t).sample
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(sample, t)
    mixed.sample.float().square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())
    pure = copy.deepcopy(model).to(torch.bfloat16)(sample.bfloat16(), t).sample
    assert pure.dtype == torch.bfloat16
    for rough in (mixed.sample, pure):
        assert ((rough.float() - exact).norm() / exact.norm()).item() < 0.03


def test_sampling_first_does_not_spoil_training():
    """Tables made under inference mode must not be what a later backward pass meets."""
    model = build()
    sample, t = inputs(height=8, width=8)
    with torch.inference_mode():
        model(sample, t)
    model(sample, t).sample.sum().backward()


def test_the_whole_model_compiles_as_one_graph():
    model = build(num_classes=2)
    sample, t = inputs()
    labels = torch.tensor([0, 2])
    model.prepare(3, 4, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = compiled(sample, t, class_labels=labels).sample
    torch.testing.assert_close(found, model(sample, t, class_labels=labels).sample)
    found.square().mean().backward()
    compiled_gradient = model.blocks[0].spatial.mamba.A_log.grad.clone()
    model.zero_grad()
    model(sample, t, class_labels=labels).sample.square().mean().backward()
    torch.testing.assert_close(compiled_gradient, model.blocks[0].spatial.mamba.A_log.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("overrides", [{}, {"num_classes": 3, "first_frame_conditioning": True, "stored_grid": (2, 3)}])
def test_saving_and_loading_give_the_same_model(tmp_path, overrides):
    model = build(**overrides, planes=("fw", "hw"))
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    loaded = MedSora.from_pretrained(tmp_path)
    sample, t = inputs()
    torch.testing.assert_close(loaded(sample, t).sample, model(sample, t).sample, rtol=0, atol=0)
    assert {k: p.requires_grad for k, p in loaded.named_parameters()} == {
        k: p.requires_grad for k, p in model.named_parameters()
    }


def test_loading_in_bfloat16_keeps_decays_in_float32(tmp_path):
    build().save_pretrained(tmp_path)
    loaded = MedSora.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    wide = {name.split(".")[-1] for name, p in loaded.named_parameters() if p.dtype == torch.float32}
    assert wide == {"A_log", "dt_bias"} and loaded.dtype == torch.bfloat16
    sample, t = inputs(dtype=torch.bfloat16)
    assert loaded(sample, t).sample.isfinite().all()


def test_presets():
    model = MedSora.preset("tiny", in_channels=8, num_classes=2)
    assert model.config.num_classes == 2
    assert model(torch.randn(1, 4, 8, 8, 8), torch.tensor([5])).sample.shape == (1, 4, 16, 8, 8)
    with torch.device("meta"):
        depths = {name: len(MedSora.preset(name).blocks) for name in ("S", "B", "L", "XL")}
    assert depths == {"S": 6, "B": 12, "L": 24, "XL": 48}
    with pytest.raises(ValueError, match="preset: got 'M', wants one of tiny, S, B, L, XL"):
        MedSora.preset("M")
    with pytest.raises(ValueError, match="preset: got 'tiny', wants one of S, B, L, XL"):
        MedSora.released_preset("tiny")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"depth": 0}, "depth: got 0"),
        ({"hidden_size": 30}, "hidden_size: got 30, wants a positive multiple of 4"),
        ({"hidden_size": 96}, "wants a multiple of 64 unless attention_heads is given"),
        ({"attention_heads": 5}, "attention_heads: got 5"),
        ({"attention_window": 0}, "attention_window: got 0"),
        ({"head_dim": 48}, "head_dim: got 48"),
        ({"state_size": 0}, "state_size: got 0"),
        ({"planes": ()}, "planes: got"),
        ({"planes": ("fw", "fw")}, "planes: got"),
        ({"planes": ("wh",)}, "planes: got"),
        ({"scan_order": "zigzag"}, "scan_order: got 'zigzag'"),
        ({"num_classes": -1}, "num_classes: got -1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MedSora(**{**SMALL, **wrong})


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"sample": torch.zeros(2, 3, 5, 4, 6)}, r"sample: got shape \(2, 3, 5, 4, 6\), wants \(batch, frames, 4,"),
        ({"sample": torch.zeros(2, 3, 4, 5, 6)}, "sample: got latents of 5 x 6, wants multiples of patch_size 2"),
        ({"sample": torch.zeros(3, 4, 4, 6)}, "sample: got shape"),
        ({"sample": torch.zeros(2, 0, 4, 4, 6)}, "sample: got shape"),
        ({"timestep": torch.tensor(3)}, "timestep: got shape"),
        ({"class_labels": torch.tensor([0, 4])}, r"class_labels: got \[0, 4\], wants 0 to 3, where 3 says no label"),
        ({"class_labels": torch.tensor([0, -1])}, "class_labels: got"),
        ({"class_labels": torch.tensor([0])}, "class_labels: got"),
        ({"class_labels": torch.tensor([0.0, 1.0])}, "class_labels: got torch.float32"),
        ({"first_frames": torch.zeros(2, 3, 4, 4, 6)}, "one without the other"),
        (
            {"first_frames": torch.zeros(2, 1, 4, 4, 6), "first_frames_mask": torch.ones(2, 3)},
            "first_frames: got shape",
        ),
        (
            {"first_frames": torch.zeros(2, 3, 4, 4, 6), "first_frames_mask": torch.ones(3)},
            "first_frames_mask: got shape",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(wrong, message):
    model = MedSora(**{**SMALL, "depth": 1}, num_classes=3, first_frame_conditioning=True)
    sample, t = inputs()
    call = {"sample": sample, "timestep": t, **wrong}
    with pytest.raises(ValueError, match=message):
        model(call.pop("sample"), call.pop("timestep"), **call)


def test_given_frames_need_a_model_that_takes_them():
    sample, t = inputs()
    with pytest.raises(ValueError, match="wants None for a model without first_frame_conditioning"):
        build()(sample, t, first_frames=sample, first_frames_mask=torch.ones(2, 3))
