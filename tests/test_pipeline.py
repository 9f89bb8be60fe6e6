"""The pipeline as its users meet it: saved and loaded, every sampler, conditions, output, and wrong arguments."""

import math
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from micro_model import micro_denoiser, micro_pipeline, micro_vae
from sampling import sampled

from medsora import MedSoraPipeline
from medsora.diffusion import SCHEDULERS, DiffusionSettings, make_scheduler
from medsora.models import FrequencyCompensatedVAE, MedSora
from medsora.pipeline import video_generator

CLOSE = dict(rtol=1e-3, atol=1e-4)  # matrix products round differently in batches of other sizes


@pytest.fixture(scope="module")
def pipeline():
    return micro_pipeline()


def latents(pipeline, **arguments):
    arguments = {"num_inference_steps": 4, "output_type": "latent", "progress": False} | arguments
    return pipeline(**arguments).videos


def given_frames(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def sampled_gaussian(sampler, mean, deviation):
    """Noise, and what the sampler makes of it where the data is N(mean, deviation^2), whose noise is known exactly."""
    noise = torch.randn((1, 4, 2, 100, 100), generator=torch.Generator().manual_seed(0))
    x, generator = noise * sampler.init_noise_sigma, torch.Generator().manual_seed(1)
    extra = {"generator": generator} if isinstance(sampler, DDPMScheduler) else {}
    for t in sampler.timesteps:
        a = sampler.alphas_cumprod[int(t)]
        entering = sampler.scale_model_input(x, t)
        predicted = (entering - a.sqrt() * mean) * (1 - a).sqrt() / (deviation**2 * a + 1 - a)
        if extra:  # the smallest variance
            predicted = torch.cat([predicted, -torch.ones_like(x)], 1)
        x = sampler.step(predicted, t, x, **extra).prev_sample
    return noise, x


class TestSaving:
    def test_a_loaded_pipeline_makes_the_same_videos(self, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path)
        loaded = MedSoraPipeline.from_pretrained(tmp_path)
        assert isinstance(loaded.vae, FrequencyCompensatedVAE) and isinstance(loaded.denoiser, MedSora)
        assert type(loaded.scheduler) is DDIMScheduler
        assert [loaded.config[name] for name in ("height", "width", "num_frames", "fps")] == [32, 32, 8, 5.0]
        call = dict(num_videos=2, num_inference_steps=3, seed=4, class_labels=1, progress=False)
        assert np.array_equal(pipeline(**call).videos, loaded(**call).videos)

    def test_half_precision_on_loading(self, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path)
        loaded = MedSoraPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
        assert loaded.vae.dtype == loaded.denoiser.dtype == torch.bfloat16

    @pytest.mark.parametrize("make, kind", [(micro_vae, FrequencyCompensatedVAE), (micro_denoiser, MedSora)])
    def test_each_model_by_itself(self, make, kind, tmp_path):
        model = make()
        model.save_pretrained(tmp_path)
        loaded, found = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(found.values())
        assert {k: v for k, v in loaded.config.items() if k[0] != "_"} == {
            k: list(v) if isinstance(v, tuple) else v for k, v in model.config.items() if k[0] != "_"
        }
        before, after = model.state_dict(), loaded.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_each_scheduler_with_its_noise_schedule(self, name, tmp_path):
        settings = DiffusionSettings(num_train_timesteps=50, beta_schedule="scaled_linear", beta_end=0.03)
        pipeline = MedSoraPipeline(micro_vae(), micro_denoiser(), make_scheduler(name, settings))
        pipeline.save_pretrained(tmp_path)
        loaded = MedSoraPipeline.from_pretrained(tmp_path)
        assert type(loaded.scheduler) is type(pipeline.scheduler)
        assert torch.equal(loaded.scheduler.betas, pipeline.scheduler.betas)
        call = dict(num_frames=8, num_inference_steps=5)
        named = latents(micro_pipeline(), scheduler=name, **call)  # another noise schedule
        assert torch.equal(latents(loaded, **call), latents(loaded, scheduler=name, **call))
        assert not torch.allclose(latents(loaded, **call), named)


class TestSamplers:
    @pytest.mark.parametrize("name", SCHEDULERS)
    @pytest.mark.parametrize("steps", [1, 3, 10])
    def test_each_samples(self, pipeline, name, steps):
        made = pipeline(num_videos=2, num_inference_steps=steps, scheduler=name, progress=False).videos
        assert made.shape == (2, 8, 32, 32, 3) and made.dtype == np.float32
        assert made.min() >= 0 and made.max() <= 1 and made.std() > 0.01
        assert np.abs(made[0] - made[1]).max() > 0.01

    @pytest.mark.parametrize("levels, name", list(product([1000, 999, 20], SCHEDULERS)))
    def test_levels_are_as_many_as_steps_and_spread_evenly(self, levels, name):
        pipeline = micro_pipeline(levels=levels)
        for steps in {1, 13, 15, levels, *sampled(list(range(1, levels + 1)), 12)}:
            predictions = pipeline._sampler(name, steps).timesteps.tolist()
            assert len(predictions) == pipeline.count_predictions(steps, name)
            visited = list(dict.fromkeys(predictions))  # Heun asks twice at all levels but the first
            assert len(predictions) == (2 * steps - 1 if name == "heun" else steps)
            assert len(visited) == steps and visited[0] == levels - 1 and visited[-1] >= 0
            gaps = {a - b for a, b in zip(visited, visited[1:] + [-1])}
            assert gaps <= {levels // steps, -(-levels // steps)}

    @pytest.mark.parametrize("name, steps", list(product(SCHEDULERS, [150, 250, 600])))
    def test_exact_predictions_give_the_spread_of_the_data(self, pipeline, name, steps):
        _, made = sampled_gaussian(pipeline._sampler(name, steps), mean=0.0, deviation=0.5)
        assert abs(made.std().item() - 0.5) < 0.025

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_more_steps_are_closer_to_the_data(self, pipeline, name):
        """Against the exact solution of the probability flow, or, for DDPM, the distribution it ends in."""
        mean, deviation, errors = 0.7, 0.5, []
        for steps in (5, 10, 25, 100, 250):
            noise, made = sampled_gaussian(pipeline._sampler(name, steps), mean, deviation)
            a = pipeline.scheduler.alphas_cumprod[-1]
            exact = mean + (noise - a.sqrt() * mean) * deviation / (deviation**2 * a + 1 - a).sqrt()
            squares = (made.mean() - mean) ** 2 + (made.std() - deviation) ** 2
            errors.append(squares.sqrt().item() if name == "ddpm" else (made - exact).square().mean().sqrt().item())
        assert all(after < 0.8 * before for before, after in zip(errors, errors[1:])), errors
        assert errors[-1] < 0.02

    def test_higher_orders_need_fewer_predictions(self, pipeline):
        def error(name, steps):
            noise, made = sampled_gaussian(pipeline._sampler(name, steps), 0.7, 0.5)
            _, close = sampled_gaussian(pipeline._sampler("heun", 500), 0.7, 0.5)
            return (made - close).square().mean().sqrt().item()

        ddim = error("ddim", 25)
        assert error("heun", 13) < ddim and error("dpm-solver++", 25) < ddim

    @pytest.mark.parametrize("steps", [1, 10, 50])
    def test_ddim_and_its_stand_in_agree(self, pipeline, steps):
        ddim = make_scheduler("ddim")
        other = DPMSolverMultistepScheduler.from_config(ddim.config, algorithm_type="dpmsolver++", solver_order=1)
        assert isinstance(pipeline._sampler("ddim", 7), DPMSolverMultistepScheduler)
        ends = []
        for sampler in (ddim, other):
            sampler.set_timesteps(steps)
            x = torch.linspace(-2, 2, 50)
            for t in sampler.timesteps:
                x = sampler.step(torch.tanh(x * (1 + t / 1000)), t, x).prev_sample
            ends.append(x)
        torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-4)

    def test_ddpm_takes_the_learned_variance_in_all_steps_but_the_last(self):
        """Models that predict no noise and the smallest or the largest variance: videos differ by the noise added."""
        narrow, wide = micro_pipeline("ddpm", fresh=True), micro_pipeline("ddpm", fresh=True)
        with torch.no_grad():  # the last map's bias: noise, then variance
            narrow.denoiser.final_layer.linear.bias[4:] = -1
            wide.denoiser.final_layer.linear.bias[4:] = 1
        assert type(narrow._sampler("ddpm", 10)) is DDPMScheduler
        one, two = ([latents(p, num_videos=8, num_inference_steps=n) for p in (narrow, wide)] for n in (1, 2))
        torch.testing.assert_close(*one)
        before, after = narrow.scheduler.alphas_cumprod[[499, 999]].double()
        largest = 1 - after / before
        smallest = (1 - before) / (1 - after) * largest
        expected = (largest.sqrt() - smallest.sqrt()) / before.sqrt()
        assert (two[1] - two[0]).std().item() == pytest.approx(expected.item(), rel=0.05)
        assert torch.equal(*(latents(p, scheduler="ddim", num_inference_steps=2) for p in (narrow, wide)))


class TestEachVideoIsItsOwn:
    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    def test_draws_do_not_depend_on_the_batch(self, scheduler):
        """A fresh denoiser predicts zero, so nothing rounds and the draws show bit for bit."""
        pipeline = micro_pipeline(fresh=True)
        call = dict(scheduler=scheduler, seed=3)
        together = latents(pipeline, num_videos=5, batch_size=5, **call)
        for size in (1, 2):
            assert torch.equal(latents(pipeline, num_videos=5, batch_size=size, **call), together)
        assert torch.equal(latents(pipeline, num_videos=2, first_index=3, **call), together[3:])
        assert not torch.equal(latents(pipeline, num_videos=5, scheduler=scheduler, seed=4), together)

    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    @pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
    def test_videos_do_not_depend_on_the_batch(self, scheduler, guidance_scale):
        """With few noise levels, so that untrained predictions are not blown up and frames are not saturated."""
        pipeline = micro_pipeline(levels=100)
        call = dict(
            num_inference_steps=4, scheduler=scheduler, guidance_scale=guidance_scale, class_labels=2, progress=False
        )
        together = pipeline(num_videos=3, batch_size=3, **call).videos
        for index in range(3):
            alone = pipeline(num_videos=1, first_index=index, **call).videos
            np.testing.assert_allclose(alone[0], together[index], rtol=0, atol=3e-5)
        assert 0.2 < ((together > 0) & (together < 1)).mean()

    def test_a_videos_generator_is_a_function_of_both_numbers(self):
        draws = {(s, i): torch.randn(3, generator=video_generator(s, i)).tolist() for s in (0, 1, -1) for i in (0, 1)}
        assert len(set(map(tuple, draws.values()))) == 6
        assert torch.randn(3, generator=video_generator(1, 1)).tolist() == draws[1, 1]
        assert draws[0, 0] == pytest.approx([-0.7093, -1.1288, -1.4856], abs=1e-4)  # on any machine, in any version


class TestConditions:
    def test_labels_one_for_all_or_one_a_video(self, pipeline):
        each = latents(pipeline, num_videos=3, class_labels=[0, 1, 2])
        for label in range(3):
            same = latents(pipeline, num_videos=3, class_labels=label)
            torch.testing.assert_close(each[label], same[label], **CLOSE)
            assert (each[(label + 1) % 3] - same[(label + 1) % 3]).abs().max() > 1e-2

    def test_guidance_extrapolates_from_the_prediction_without_the_label(self, pipeline):
        """One DDIM step is linear in the predicted noise, so the latents extrapolate as the prediction does."""
        one = dict(num_inference_steps=1, num_videos=2)
        free, conditional = latents(pipeline, **one), latents(pipeline, class_labels=1, **one)
        assert torch.equal(latents(pipeline, class_labels=1, guidance_scale=1.0, **one), conditional)
        torch.testing.assert_close(latents(pipeline, class_labels=1, guidance_scale=0.0, **one), free, **CLOSE)
        guided = latents(pipeline, class_labels=1, guidance_scale=3.0, **one)
        scale = guided.abs().max()
        torch.testing.assert_close(guided / scale, (free + 3 * (conditional - free)) / scale, **CLOSE)
        assert (guided - conditional).abs().max() > 1e-2 * scale

    def test_guidance_by_a_label_keeps_the_first_frame_and_without_one_pushes_by_it(self, pipeline):
        one = dict(num_inference_steps=1)
        given = dict(first_frame=given_frames(1))
        unlabelled = latents(pipeline, **given, **one)
        zero = latents(pipeline, class_labels=1, guidance_scale=0.0, **given, **one)
        torch.testing.assert_close(zero, unlabelled, **CLOSE)
        zero = latents(pipeline, guidance_scale=0.0, **given, **one)
        torch.testing.assert_close(zero, latents(pipeline, **one), **CLOSE)
        assert (zero - unlabelled).abs().max() > 1e-2

    @pytest.mark.parametrize("count, latent_count", [(1, 1), (8, 2), (9, 3)])
    def test_given_frames_reach_the_denoiser_encoded_on_their_own(self, pipeline, count, latent_count):
        frames, seen = given_frames(count), []
        hook = pipeline.denoiser.register_forward_pre_hook(lambda _, a, k: seen.append(k), with_kwargs=True)
        with hook:
            made = latents(pipeline, num_frames=16, num_videos=2, first_frame=frames, num_inference_steps=1)
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
        with torch.no_grad():
            expected = pipeline.vae.encode(pixels).latent_dist.mean.transpose(1, 2) * 0.7
        (inputs,) = seen
        assert inputs["first_frames_mask"].tolist() == [[1.0] * latent_count + [0.0] * (4 - latent_count)] * 2
        torch.testing.assert_close(inputs["first_frames"][:, :latent_count], expected.expand(2, -1, -1, -1, -1))
        assert inputs["first_frames"][:, latent_count:].abs().max() == 0
        assert (made - latents(pipeline, num_frames=16, num_videos=2, num_inference_steps=1)).abs().max() > 1e-3

    def test_given_frames_carry_the_noise_they_had_in_training(self, pipeline, tmp_path):
        call = dict(num_frames=16, first_frame=given_frames(8), num_inference_steps=1, seed=3)
        noised, seen = micro_pipeline(), []
        noised.register_to_config(given_noise=0.25)
        noised.save_pretrained(tmp_path)
        noised = MedSoraPipeline.from_pretrained(tmp_path)
        for model in (pipeline, noised):
            with model.denoiser.register_forward_pre_hook(lambda _, a, k: seen.append((a, k)), with_kwargs=True):
                latents(model, num_videos=3, **call)
        latents(noised, num_frames=16, num_inference_steps=1, seed=3)  # nothing is given: nothing to put noise on
        ((start, *_), clean), ((same, *_), dirty) = seen
        noise = (dirty["first_frames"] - clean["first_frames"])[:, :2]
        assert torch.equal(start, same) and dirty["first_frames"][:, 2:].eq(0).all()
        assert abs(float(noise.std()) - 0.25) < 0.05 and len({float(video.sum()) for video in noise}) == 3
        alone = latents(noised, first_index=2, **call)
        torch.testing.assert_close(latents(noised, num_videos=3, **call)[2:], alone, **CLOSE)
        with pytest.raises(ValueError, match="given_noise: got -1, wants a number of 0 or more"):
            MedSoraPipeline(pipeline.vae, pipeline.denoiser, pipeline.scheduler, given_noise=-1)

    def test_given_frames_as_bytes_floats_tensors_or_one_picture(self, pipeline):
        frame = given_frames(1)
        made = [
            latents(pipeline, first_frame=f, num_inference_steps=1)
            for f in (frame, frame[0], frame / np.float32(255), torch.from_numpy(frame))
        ]
        assert all(torch.equal(made[0], other) for other in made[1:])


class TestOutput:
    def test_types(self, pipeline):
        call = dict(num_videos=3, num_inference_steps=2, batch_size=2, num_frames=9, progress=False)
        array = pipeline(output_type="np", **call).videos
        tensor = pipeline(output_type="pt", **call).videos
        latent = pipeline(output_type="latent", **call).videos
        assert isinstance(array, np.ndarray) and array.shape == (3, 9, 32, 32, 3)
        assert torch.equal(tensor, torch.from_numpy(array))
        assert latent.shape == (3, 3, 4, 4, 4) and latent.dtype == torch.float32
        with torch.no_grad():
            decoded = pipeline.vae.decode(latent.transpose(1, 2) / 0.7).sample
        np.testing.assert_allclose((decoded.clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 4, 1).numpy(), array, **CLOSE)

    @pytest.mark.parametrize("frames, height, width", [(1, 32, 32), (16, 16, 24), (17, 8, 40)])
    def test_any_size(self, pipeline, frames, height, width):
        made = pipeline(num_frames=frames, height=height, width=width, num_inference_steps=1, progress=False).videos
        assert made.shape == (1, frames, height, width, 3)

    def test_bf16(self):
        pipeline = micro_pipeline()
        exact = pipeline(num_inference_steps=4, class_labels=1, first_frame=given_frames(1), progress=False).videos
        pipeline.to(torch.bfloat16)
        made = pipeline(num_inference_steps=4, class_labels=1, first_frame=given_frames(1), progress=False).videos
        assert made.dtype == np.float32 and not np.array_equal(made, exact)
        assert np.abs(made - exact).mean() < 0.01

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_captured_graphs_make_the_same_videos(self):
        call = dict(num_videos=2, num_inference_steps=4, class_labels=1, guidance_scale=2.0, progress=False)
        pipeline = micro_pipeline(levels=100).to("cuda")
        plain = pipeline(**call).videos
        pipeline.compile_denoiser()
        for _ in range(2):  # recorded, then replayed
            np.testing.assert_allclose(pipeline(**call).videos, plain, atol=1e-3)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    def test_cuda_makes_the_cpus_videos(self, scheduler):
        call = dict(num_videos=2, num_inference_steps=4, class_labels=1, first_frame=given_frames(8), progress=False)
        pipeline = micro_pipeline()
        exact = pipeline(scheduler=scheduler, **call).videos
        made = pipeline.to("cuda")(scheduler=scheduler, **call).videos
        np.testing.assert_allclose(made, exact, atol=5e-3)

    def test_slicing_and_tiling(self):
        pipeline = micro_pipeline()
        call = dict(num_videos=2, num_inference_steps=1, height=64, width=64, progress=False)
        whole, decoded = pipeline(**call).videos, []
        inner = pipeline.vae.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(inputs[0].shape))
        pipeline.enable_vae_slicing()
        np.testing.assert_allclose(pipeline(**call).videos, whole, **CLOSE)
        assert {shape[0] for shape in decoded} == {1}
        pipeline.disable_vae_slicing()
        decoded.clear()
        pipeline.enable_vae_tiling()
        tiled = pipeline(**call).videos
        assert {shape[-2:] for shape in decoded} == {(4, 4), (4, 2), (2, 4), (2, 2)} and tiled.shape == whole.shape
        assert np.abs(tiled - whole).mean() < 0.1
        pipeline.disable_vae_tiling()
        np.testing.assert_allclose(pipeline(**call).videos, whole, **CLOSE)
        inner.remove()

    def test_a_bar_or_silence_and_a_callback(self, pipeline, capfd):
        steps = []
        latents(pipeline, num_videos=5, batch_size=2, num_inference_steps=3, on_step=steps.append)
        assert steps == [2] * 6 + [1] * 3 and capfd.readouterr().err == ""
        latents(pipeline, num_videos=5, batch_size=2, num_inference_steps=3, progress=True)
        assert "9/9" in capfd.readouterr().err
        pipeline.set_progress_bar_config(disable=True)
        latents(pipeline, progress=True)
        pipeline.set_progress_bar_config()
        assert capfd.readouterr().err == ""


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_a_compiled_denoiser_makes_the_same_videos(tmp_path):
    pipeline = micro_pipeline(levels=100, depth=1)
    call = dict(num_inference_steps=4, class_labels=1, first_frame=given_frames(1), progress=False)
    plain = pipeline(**call).videos
    pipeline.compile_denoiser()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    np.testing.assert_allclose(pipeline(**call).videos, plain, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1  # one graph, and it was used
    pipeline.save_pretrained(tmp_path)  # what is saved is the model, not its compiled form
    np.testing.assert_array_equal(MedSoraPipeline.from_pretrained(tmp_path)(**call).videos, plain)


WRONG = [
    (dict(num_videos=0), "num_videos: got 0, wants 1 or more"),
    (dict(num_videos=2.0), "num_videos: got 2.0, wants 1 or more"),
    (dict(batch_size=0), "batch_size: got 0, wants 1 or more"),
    (dict(first_index=-1), "first_index: got -1, wants 0 or more"),
    (dict(seed=0.5), "seed: got 0.5, wants a whole number"),
    (dict(num_inference_steps=0), "num_inference_steps: got 0, wants 1 to 1000"),
    (dict(num_inference_steps=1001), "num_inference_steps: got 1001, wants 1 to 1000"),
    (dict(scheduler="euler"), r"scheduler: got 'euler', wants one of ddpm, ddim, dpm-solver\+\+, heun"),
    (dict(output_type="pil"), "output_type: got 'pil', wants one of np, pt, latent"),
    (dict(num_frames=7), r"num_frames: got 7, wants 1, 8k or 8k \+ 1 frames"),
    (dict(num_frames=8.0), "num_frames: got 8.0, wants 1 or more"),
    (dict(height=30), "height: got 30, wants a positive multiple of 8"),
    (dict(width=0), "width: got 0, wants 1 or more"),
    (dict(class_labels=3), "class_labels: got 3, wants numbers from 0 to 2"),
    (dict(class_labels=[0, -1], num_videos=2), r"class_labels: got \[0, -1\], wants numbers from 0 to 2"),
    (dict(class_labels=[0, 1], num_videos=3), r"class_labels: got \[0, 1\], wants one class number or 3 of them"),
    (dict(class_labels=1.0), "class_labels: got 1.0, wants one class number or 1 of them"),
    (dict(class_labels="polyp"), "class_labels: got 'polyp', wants numbers from 0 to 2"),
    (dict(guidance_scale=2), "guidance_scale: got 2, wants 1 without a class label or first frame"),
    (dict(guidance_scale=math.nan, class_labels=1), "guidance_scale: got nan, wants a number of 0 or more"),
    (dict(guidance_scale=-1, class_labels=1), "guidance_scale: got -1, wants a number of 0 or more"),
    (dict(first_frame=given_frames(2)), r"first_frame: got shape \(2, 32, 32, 3\), wants \(1, 8 or 9 frames, 32, 32"),
    (dict(first_frame=given_frames(1), height=16), r"first_frame: got shape \(1, 32, 32, 3\), wants .* 16, 32, 3\)"),
    (dict(first_frame=given_frames(9)), "first_frame: got 9 frames, wants at most the video's 8"),
    (dict(first_frame=given_frames(1).astype(int)), "first_frame: got torch.int64 values, wants uint8, or floats in"),
    (dict(first_frame=given_frames(1) * 1.0), "first_frame: got torch.float64 values, wants uint8, or floats in"),
    (dict(first_frame=given_frames(1) * np.nan), "first_frame: got torch.float64 values, wants uint8, or floats in"),
]


@pytest.mark.parametrize("arguments, words", WRONG, ids=[words[:40] for _, words in WRONG])
def test_a_wrong_argument_is_named(pipeline, arguments, words):
    with pytest.raises(ValueError, match=words):
        pipeline(**arguments)


def test_conditions_the_model_was_not_trained_with():
    plain = micro_pipeline(num_classes=0, first_frame_conditioning=False)
    with pytest.raises(ValueError, match="class_labels: got 1, wants None: this model was trained without classes"):
        plain(class_labels=1)
    with pytest.raises(ValueError, match="first_frame: got frames, wants None: this model was trained without"):
        plain(first_frame=given_frames(1))


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="vae, denoiser: got latents of 4 channels for a denoiser of 8"):
        MedSoraPipeline(micro_vae(), micro_denoiser(in_channels=8), make_scheduler("ddim"))
    other = DDIMScheduler.from_config(make_scheduler("ddim").config, prediction_type="v_prediction")
    with pytest.raises(ValueError, match="scheduler: got prediction_type 'v_prediction', wants 'epsilon'"):
        MedSoraPipeline(micro_vae(), micro_denoiser(), other)
