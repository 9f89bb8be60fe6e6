"""A whole run: frames, video VAE, latents, denoiser, results; each stage is done once and recorded.

The same command goes on where the last one stopped: within a stage from its checkpoint, else with the next stage.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medsora.errors import UserError
from medsora.files import replacing_folder, write_json
from medsora.model_card import write_run_card
from medsora.processes import PATIENCE, Processes, leave_group, local_device, require_enough
from medsora.training.draws import Draws
from medsora.training.run_folder import STAGES, RunFolder
from medsora.training.settings import samples_at_once
from medsora.training.sharding import fsdp_plugin
from medsora.training.stopping import StopRequests

if TYPE_CHECKING:
    from accelerate import Accelerator

    from medsora.config import TrainSettings
    from medsora.training.vae_stage import VAETraining


def run_training(settings: TrainSettings, stops: StopRequests, say: Callable[[str], None] = print) -> RunFolder:
    """Does what is left of a run and returns its folder.

    Raises UserError for settings or data that cannot work, Interrupted on a stop request, TrainingDiverged.
    """
    folder = RunFolder(settings.output)
    folder.check(settings)
    if is_finished(folder, settings):
        say(f"This run is finished (settings, numbers and samples are in {folder.path}).")
        return folder
    run = _Run(settings, folder, stops, say)
    try:
        for number, stage in enumerate(STAGES, 1):
            run.do(stage, number)
    finally:
        leave_group()
    return folder


def is_finished(folder: RunFolder, settings: TrainSettings) -> bool:
    """Whether every stage is done, for as many steps as the settings ask."""
    facts = {stage: folder.done(stage) for stage in STAGES}
    return all(fact is not None for fact in facts.values()) and all(
        facts[stage]["steps"] >= settings.limit(stage) for stage in ("vae", "denoiser")
    )


class _Run:
    """The stages of one run and what they hand on; only the main process of several writes."""

    def __init__(self, settings: TrainSettings, folder: RunFolder, stops: StopRequests, say: Callable[[str], None]):
        self.settings, self.folder, self.stops = settings, folder, stops
        self.accelerator = _accelerator(settings.device)
        self.main = self.accelerator.is_main_process
        self.processes = Processes(self.accelerator.process_index, self.accelerator.num_processes)
        self.say = say if self.main else lambda words: None
        if folder.done("vae") is None:
            _check_vae(settings)
        if folder.done("latents") is None:
            _check_alignment(settings)
            if _denoiser_config(settings).first_frame_conditioning:
                from medsora.training.first_frames import given_counts

                given_counts(settings.denoiser.given_frames, settings.prepare.num_frames)
        _check_batches(settings, self.processes.count)
        if self.main:
            folder.claim(settings)
        self.accelerator.wait_for_everyone()

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def dataset(self) -> Path:
        return Path(self.folder.done("frames")["dataset"])

    def do(self, stage: str, number: int) -> None:
        """Does a stage unless it is done already, and records it."""
        titles = {
            "frames": "preparing frames",
            "vae": "training the video VAE",
            "latents": "encoding clips into latents",
            "denoiser": "training the denoiser",
            "results": "sampling, measuring and writing the report",
        }
        known = self.folder.done(stage)
        if known is not None and known.get("steps", 0) >= (
            self.settings.limit(stage) if stage in ("vae", "denoiser") else 0
        ):
            self.accelerator.wait_for_everyone()
            return
        if stage != "frames":
            self._check_processes()
        self.say(f"[{number}/{len(STAGES)}] {titles[stage]}")
        started = time.perf_counter()
        facts = getattr(self, "_" + stage)()
        self.accelerator.wait_for_everyone()
        if self.main:
            self.folder.finish(stage, **facts, seconds=round(time.perf_counter() - started, 1))
            if stage in ("denoiser", "results"):
                found = {name: self.folder.done(name) for name in STAGES}
                write_run_card(self.path, self.settings, self.dataset, found)
        self.accelerator.wait_for_everyone()
        gc.collect()

    def _frames(self) -> dict:
        from medsora.data.manifest import Manifest
        from medsora.training.denoiser_stage import check_classes

        prepared = Path(self.settings.data)
        if (prepared / "manifest.json").is_file() and (prepared / "frames").is_dir():
            dataset = prepared
            _check_prepared(Manifest.read(prepared), self.settings)
        else:
            dataset = self.path / "dataset"
            if self.main:
                from medsora.data import prepare_frames

                prepare_frames(self.settings.data, dataset, self.settings.prepare)
            self.accelerator.wait_for_everyone()
        manifest = Manifest.read(dataset)
        counts = {split: len(manifest.of_split(split)) for split in ("train", "val")}
        for note in manifest.notes:
            self.say(f"      {note}")
        self.say(
            f"      {counts['train']} training and {counts['val']} validation clips, "
            f"{len(manifest.skipped)} files skipped"
        )
        check_classes(self.settings.denoiser, manifest.labels)
        if manifest.labels:
            self.say(f"      classes: {', '.join(manifest.labels)}")
        return {"dataset": str(dataset), **counts, "skipped": len(manifest.skipped)}

    def _vae(self) -> dict:
        from medsora.data import FrameClips
        from medsora.training import vae_stage
        from medsora.training.loop import Trainer

        settings = self.settings.vae
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Draws(self.settings.seed, "vae").integer("initial weights"))
            vae = vae_stage.build_vae(settings)
        clips = FrameClips(self.dataset, "train", min_frames=settings.num_frames)
        task = vae_stage.vae_task(vae, clips, settings, self.settings.seed, _digest(self.dataset / "manifest.json"))
        trainer = Trainer(task, settings, self.path, self.accelerator, self.stops, self.settings.seed)
        trainer.train(self.settings.limit("vae"))
        facts = {"steps": trainer.step, "parameters": sum(p.numel() for p in vae.parameters())}
        reconstruction = trainer.look(self._finish_vae)
        if self.main:
            facts |= reconstruction
            self.say(f"      held-out PSNR {facts['psnr']:.2f} dB on {facts['clips']} {facts['split']} clips")
        return facts

    def _finish_vae(self, module: VAETraining) -> dict:
        from medsora.training.results import held_out_reconstruction

        vae = module.vae.eval()
        found = held_out_reconstruction(vae, self.dataset, self.path, self.settings)
        with replacing_folder(self.path / "vae") as temporary:
            vae.save_pretrained(temporary)
        return found

    def _latents(self) -> dict:
        from medsora.data import LatentClips, prepare_latents

        settings, vae = self.settings, self._load_vae()
        patch = _denoiser_config(settings).patch_size
        prepare_latents(
            self.dataset, vae, settings.prepare, settings.alignment, self.accelerator.device, progress=self.main,
            patch_size=patch, processes=self.processes,
        )  # fmt: skip
        if not self.main:
            return {}
        clips = LatentClips(self.dataset, "train")
        if settings.vae.pretrained is None:  # a pretrained backbone keeps the factor it was published with
            vae.register_to_config(scaling_factor=clips.statistics["scaling_factor"])
            # One file, so that a kill leaves the old factor or the new one, and never no VAE.
            config = json.loads(vae.to_json_string())
            config.pop("_name_or_path", None)  # where it was loaded from; the folder may move
            write_json(self.path / "vae" / "config.json", config)
        if _denoiser_config(settings).first_frame_conditioning:
            from medsora.training.first_frames import first_frame_latents, given_counts

            counts = given_counts(settings.denoiser.given_frames, settings.prepare.num_frames)
            first_frame_latents(self.dataset, clips, vae, counts, progress=True)
        self.say(f"      {len(clips)} windows and {len(clips.images)} images, scale {vae.config.scaling_factor:.4f}")
        return {
            "windows": len(clips),
            "images": len(clips.images),
            "scaling_factor": float(vae.config.scaling_factor),
        }

    def _denoiser(self) -> dict:
        from medsora.training.denoiser_run import DenoiserRun

        self._check_latents_match()
        return DenoiserRun(self.settings, self.path, self.dataset, self.accelerator, self.stops, self.say).train()

    def _results(self) -> dict:
        if not self.main:
            return {}
        from medsora.training.results import make_results

        return make_results(self.settings, self.folder, self.dataset, self.accelerator.device, self.say)

    def _check_processes(self) -> None:
        from medsora.data.latents import count_windows
        from medsora.data.manifest import Manifest

        windows = count_windows(Manifest.read(self.dataset), self.settings.prepare)
        require_enough(self.processes.count, windows, f"training windows of {self.dataset}")

    def _check_latents_match(self) -> None:
        """A data set shared by several runs may have been encoded by another run's VAE meanwhile."""
        from medsora.data import LatentClips
        from medsora.data.latents import hash_vae

        if LatentClips(self.dataset, "train").index["vae"] != hash_vae(self._load_vae()):
            raise UserError(
                f"data: the latents in {self.dataset} were made with another VAE than {self.path / 'vae'}; two runs "
                "cannot share a prepared folder at the same time: give the recordings themselves as --data"
            )

    def _load_vae(self):
        from medsora.models import FrequencyCompensatedVAE

        return FrequencyCompensatedVAE.from_pretrained(self.path / "vae").to(self.accelerator.device).eval()


def _accelerator(device: str) -> Accelerator:
    """Places and wraps modules. Waiting processes are patient: the main one prepares data and samples alone."""
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    fsdp_plugin()  # raises where accelerate is asked for what is not served
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f'device: got {device!r}, wants "auto", "cpu" or "cuda"')
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError('device: got \'cuda\', but PyTorch finds no CUDA device here; wants "auto" or "cpu"')
    # Gradients lie in the buckets that are exchanged: no second copy of them.
    handlers = [InitProcessGroupKwargs(timeout=PATIENCE), DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    # Told that it is to be the CPU, accelerate joins processes there; left to find out, it leaves each by itself.
    return Accelerator(cpu=local_device(device) == "cpu", kwargs_handlers=handlers)


def _denoiser_config(settings: TrainSettings):
    from medsora.training.denoiser_stage import build_denoiser

    with torch.device("meta"):
        return build_denoiser(settings.denoiser, 1, 0, settings.seed).config


def _check_vae(settings: TrainSettings) -> None:
    """What would only fail when its stage comes is told before anything is done: weights and sizes."""
    from medsora.training.vae_stage import build_loss, build_vae, latent_shape

    build_loss(settings.vae)
    vae, side = build_vae(settings.vae), settings.prepare.size
    latent_shape(vae, settings.vae.num_frames, (side, side))
    latents = latent_shape(vae, settings.prepare.num_frames, (side, side))[-1]
    patch = _denoiser_config(settings).patch_size
    if latents % patch:
        raise UserError(
            f"prepare.size: got {side}, whose latents of {latents} x {latents} the denoiser's patches of {patch} do "
            f"not divide, wants a multiple of {vae.spatial_compression * patch}"
        )


def _check_batches(settings: TrainSettings, processes: int) -> None:
    denoiser, vae = settings.denoiser, settings.vae
    samples_at_once("vae.batch_size", vae.batch_size, processes, vae.accumulation)
    for name in ("batch_size", "images_per_batch"):
        samples_at_once(f"denoiser.{name}", getattr(denoiser, name), processes, denoiser.accumulation)


def _check_alignment(settings: TrainSettings) -> None:
    from medsora.alignment import load_alignment_weights

    try:
        load_alignment_weights(settings.alignment)
    except ValueError as error:
        raise UserError(f"alignment.{error}") from error


def _check_prepared(manifest, settings: TrainSettings) -> None:
    size = manifest.settings.get("size")
    if size != settings.prepare.size:
        raise UserError(f"prepare.size: got {settings.prepare.size}, wants {size}, that of the data prepared before")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
