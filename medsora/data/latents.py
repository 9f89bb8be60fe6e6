"""The second stage of preparation: clips to VAE posteriors and alignment targets, so that training runs neither."""

import copy
import hashlib
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from medsora.data.manifest import FORMAT, Clip, Manifest, digest, frames_path, latents_path, read_index
from medsora.data.settings import PrepareSettings
from medsora.errors import UserError
from medsora.files import clear_leftovers, file_sha256, save_tensors, write_json
from medsora.processes import ALONE, Processes, RecordParts

if TYPE_CHECKING:
    from medsora.alignment import AlignmentSettings

SAVE_EVERY = 5.0  # seconds between writes of the index, from which an interrupted run goes on


def prepare_latents(
    dataset_folder: str | Path,
    vae: torch.nn.Module,
    settings: PrepareSettings,
    alignment: "AlignmentSettings",
    device: str | torch.device = "cpu",
    progress: bool = True,
    patch_size: int = 2,
    processes: Processes = ALONE,
) -> None:
    """Encodes windows and single frames of every clip, with flips as entries of their own, and their alignment targets.

    Writes latents/<clip id>.safetensors with, for window k and flip v (0 as recorded, 1 mirrored left to right),
    "mean.k.v" and "std.k.v" (C, F, h, w) float32, "target.k.v" (layers, F, tokens, channels) float16, "mask.k.v"
    (F, tokens) bool; for single frames "image.mean.j", "image.std.j" (C, 1, h, w). latents.json lists window starts,
    the VAE's hash and the statistics from which the scaling factor follows. Latents are raw (unscaled).

    Run again, it encodes only clips whose frames, VAE or settings changed, or whose file is damaged.

    Args:
        dataset_folder: Where `prepare_frames` wrote.
        vae: `encode(x (1, 3, T, H, W) in [-1, 1]).latent_dist` with mean and std. Put in eval mode and moved to
            `device`, its weights unchanged.
        settings: Windows, interval, flips, images and precision.
        alignment: Of the targets; representation "none" leaves them out.
        patch_size: The denoiser's; targets are on its token grid.
        processes: Share the clips; each calls this with the same arguments and has the whole when it returns.

    Raises:
        UserError: No prepared data set, or no training clip is long enough for a window.
    """
    settings.check()
    folder = Path(dataset_folder)
    manifest = Manifest.read(folder)
    vae_hash = hash_vae(vae)
    plans = {clip.id: _plan(clip, settings) for clip in manifest.clips}
    if not any(plan.starts for plan in (plans[clip.id] for clip in manifest.of_split("train"))):
        longest = max((clip.frames for clip in manifest.of_split("train")), default=0)
        raise UserError(
            f"no training clip in {folder} holds a window of {settings.num_frames} frames at interval "
            f"{settings.interval} ({settings.span} frames); the longest has {longest}"
        )
    target_settings = _target_settings(alignment, patch_size)
    keys = {
        clip.id: digest(clip.sha256, vae_hash, asdict(plans[clip.id]), settings.encode_dtype, target_settings)
        for clip in manifest.clips
    }
    index = _Index(folder, manifest, vae_hash, settings, target_settings, processes)
    index.begin(keys)
    try:
        _encode_clips(index, vae, plans, keys, settings, alignment, torch.device(device), patch_size, progress)
    except BaseException:
        index.save()
        raise
    index.join()


@dataclass
class Plan:
    """Which windows and frames of a clip are encoded. `starts`: first frames; `images`: (frame, flip) pairs."""

    starts: list[int]
    num_frames: int
    interval: int
    flips: bool
    images: list[tuple[int, int]]
    reason: str | None = None  # why there is no window

    @property
    def entries(self) -> int:
        """How many windows and images are encoded, flips included."""
        return len(self.starts) * (2 if self.flips else 1) + len(self.images)


def _plan(clip: Clip, settings: PrepareSettings) -> Plan:
    room, reason = clip.frames - settings.span, None
    starts = spread(room + 1, settings.windows_per_clip)
    if room < 0:
        reason = (
            f"it has {clip.frames} frames; a window of {settings.num_frames} at interval {settings.interval} "
            f"covers {settings.span}"
        )
    flips = range(2 if settings.flips else 1)
    images = [(frame, flip) for frame in spread(clip.frames, settings.images_per_clip) for flip in flips]
    return Plan(starts, settings.num_frames, settings.interval, settings.flips, images, reason)


def count_windows(manifest: Manifest, settings: PrepareSettings) -> int:
    """Training windows that these settings cut, flips counted: what processes share when a denoiser trains."""
    plans = [_plan(clip, settings) for clip in manifest.of_split("train")]
    return sum(len(plan.starts) * (2 if plan.flips else 1) for plan in plans)


def spread(places: int, count: int) -> list[int]:
    """At most `count` of the numbers 0 to places - 1, evenly spaced, first and last among them (one: the first)."""
    return sorted({round(x) for x in np.linspace(0, places - 1, min(count, places))}) if places > 0 else []


def hash_vae(vae: torch.nn.Module) -> str:
    """sha256 over a VAE's configuration and weights, less the scaling factor, on which raw latents do not depend."""
    config = {k: v for k, v in dict(vae.config).items() if not k.startswith("_") and k != "scaling_factor"}
    total = hashlib.sha256(digest(config).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def read_latents_index(folder: Path, partial: bool = False) -> dict:
    """latents.json of a prepared folder.

    Raises:
        UserError: There is none, or (unless `partial`) the preparation was interrupted.
    """
    index = read_index(Path(folder) / "latents.json", "a data set with latents")
    if not partial and not index.get("complete"):
        raise UserError(f"the preparation of latents in {folder} was interrupted; run it again to finish it")
    return index


def _target_settings(alignment: "AlignmentSettings", patch_size: int) -> dict:
    """What targets depend on; the loss weight is none of it."""
    if alignment.representation == "none":
        return {"representation": "none"}
    values = {name: value for name, value in asdict(alignment).items() if name != "weight"}
    return {**values, "patch_size": patch_size}


def _intact(folder: Path, keys: dict[str, str]) -> dict[str, dict]:
    """Records of clips whose latents were made from the same frames, VAE and settings and are still whole."""
    try:
        before = read_latents_index(folder, partial=True)["clips"]
    except (UserError, KeyError):
        before = {}
    parts = RecordParts(folder / "latents.json", ALONE).read()
    return {
        clip_id: record
        for clip_id, record in (before | parts).items()
        if "frames" in record
        and record.get("key") == keys.get(clip_id)
        and file_sha256(latents_path(folder, clip_id)) == record["sha256"]
    }


class _Index:
    """latents.json while it grows: a record for each clip that is done. Of several processes each grows its part."""

    def __init__(self, folder, manifest, vae_hash, settings, target_settings, processes):
        self.folder, self.manifest, self.processes = folder, manifest, processes
        self.parts = RecordParts(folder / "latents.json", processes)
        self.done: dict[str, dict] = {}
        self.made: dict[str, dict] = {}
        names = ("num_frames", "interval", "windows_per_clip", "flips", "images_per_clip", "encode_dtype")
        self.head = {
            "format": FORMAT,
            "vae": vae_hash,
            "settings": {name: getattr(settings, name) for name in names},
            "alignment": target_settings,
        }

    def begin(self, keys: dict[str, str]) -> None:
        """Finds what is done already; the first process puts it into the whole file."""
        self.done = self.processes.from_first(lambda: _intact(self.folder, keys))
        if self.processes.is_first:
            clear_leftovers(self.folder, latents_path(self.folder, "").parent)
            self._write_whole()
        self.processes.wait()

    def todo(self) -> list[Clip]:
        """This process's share of the clips that are not done."""
        return self.processes.share([clip for clip in self.manifest.clips if clip.id not in self.done])

    def add(self, clip_id: str, record: dict) -> None:
        """Notes a clip that was encoded; `save` writes it."""
        self.made[clip_id] = record

    def save(self) -> None:
        """Writes what this process has done so far."""
        if self.processes.count > 1:
            self.parts.write(self.made)
        else:
            self._write_whole()

    def join(self) -> None:
        """Once all have come here, the first process writes the whole of what they did."""
        self.save()
        for made in self.processes.gathered(self.made):
            self.made |= made
        if self.processes.is_first:
            self._write_whole()
        self.processes.wait()

    def _write_whole(self) -> None:
        self.done |= self.made
        self._write(complete=len(self.done) == len(self.manifest.clips))
        self.parts.clear()

    def _write(self, complete: bool) -> None:
        clips = {clip.id: self.done[clip.id] for clip in self.manifest.clips if clip.id in self.done}
        train = [clips[clip.id]["moments"] for clip in self.manifest.of_split("train") if clip.id in clips]
        skipped = [
            {"clip": clip_id, "reason": record["reason"]} for clip_id, record in clips.items() if record["reason"]
        ]
        statistics = _statistics(train)
        values = {"complete": complete, "statistics": statistics, "skipped": skipped, "clips": clips}
        write_json(self.folder / "latents.json", {**self.head, **values})


def _encode_clips(index, vae, plans, keys, settings, alignment, device, patch_size, progress) -> None:
    """Encodes the clips that `index` lacks; the bar counts windows and images."""
    todo = index.todo()
    if not todo:
        return
    dtype = getattr(torch, settings.encode_dtype)
    if any(parameter.dtype != dtype for parameter in vae.parameters()):
        vae = copy.deepcopy(vae).to(dtype=dtype)  # a copy, since rounding the caller's weights could not be undone
    vae.to(device).eval()
    saved = time.monotonic()
    with tqdm(total=sum(plans[c.id].entries for c in todo), desc="latents", disable=not progress) as bar:
        for number, clip in enumerate(todo, 1):
            bar.set_postfix(clip=f"{number}/{len(todo)}")
            encoder = _ClipEncoder(index.folder, clip, vae, alignment, patch_size, bar)
            index.add(clip.id, {"key": keys[clip.id], "frames": clip.sha256, **encoder.run(plans[clip.id])})
            if time.monotonic() - saved > SAVE_EVERY:
                index.save()
                saved = time.monotonic()


class _ClipEncoder:
    """Encodes one clip's windows and images and writes its file."""

    def __init__(self, folder, clip, vae, alignment, patch_size, bar):
        self.path, self.vae, self.bar = latents_path(folder, clip.id), vae, bar
        self.alignment, self.patch_size = alignment, patch_size
        with safe_open(frames_path(folder, clip.id), framework="np") as file:
            self.frames = file.get_tensor("frames")  # (T, H, W, 3)

    def run(self, plan: Plan) -> dict:
        """Writes the file; returns the clip's record for the index."""
        tensors: dict[str, Tensor] = {}
        moments = {"count": 0, "sum": 0.0, "squares": 0.0}
        for k, start in enumerate(plan.starts):
            for flip in range(2 if plan.flips else 1):
                for name, tensor in self._window(start, flip, plan).items():
                    tensors[f"{name}.{k}.{flip}"] = tensor
                _add_moments(moments, tensors[f"mean.{k}.{flip}"], tensors[f"std.{k}.{flip}"])
                self.bar.update()
        for j, (frame, flip) in enumerate(plan.images):
            tensors[f"image.mean.{j}"], tensors[f"image.std.{j}"] = self._posterior(self._pixels([frame], flip))
            self.bar.update()
        save_tensors(self.path, tensors)
        return {
            "sha256": file_sha256(self.path),
            "starts": plan.starts,
            "flips": plan.flips,
            "images": plan.images,
            "reason": plan.reason,
            "moments": moments,
        }

    def _window(self, start: int, flip: int, plan: Plan) -> dict[str, Tensor]:
        places = [start + i * plan.interval for i in range(plan.num_frames)]
        pixels = self._pixels(places, flip)
        mean, std = self._posterior(pixels)
        entry = {"mean": mean, "std": std}
        if mean.shape[1] > 1 and self.alignment.representation != "none":
            from medsora.alignment import alignment_targets

            following = places[-1] + plan.interval  # gives the last frame a flow too, where the clip goes on
            if following < len(self.frames):
                pixels = self._pixels([*places, following], flip)
            grid = (mean.shape[2] // self.patch_size, mean.shape[3] // self.patch_size)
            found = alignment_targets(pixels, mean.shape[1], grid, self.alignment)
            entry |= {"target": found["target"].to(torch.float16), "mask": found["mask"]}
        return entry

    def _pixels(self, places: list[int], flip: int) -> np.ndarray:
        """(T, H, W, 3) uint8, mirrored before anything is computed from it."""
        pixels = self.frames[places]
        return np.ascontiguousarray(pixels[:, :, ::-1] if flip else pixels)

    def _posterior(self, pixels: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and std, (C, F, h, w) float32, of frames (T, H, W, 3) uint8."""
        parameter = next(self.vae.parameters())
        x = torch.from_numpy(pixels).to(parameter.device).permute(3, 0, 1, 2)[None].to(torch.float32)
        with torch.inference_mode():
            posterior = self.vae.encode((x / 127.5 - 1).to(parameter.dtype)).latent_dist
            return posterior.mean[0].float().cpu(), posterior.std[0].float().cpu()


def _add_moments(moments: dict, mean: Tensor, std: Tensor) -> None:
    """Sums over sampled latents: E[z] = mean, E[z^2] = mean^2 + std^2."""
    mean, std = mean.double(), std.double()
    moments["count"] += mean.numel()
    moments["sum"] += float(mean.sum())
    moments["squares"] += float((mean.square() + std.square()).sum())


def _statistics(moments: list[dict]) -> dict | None:
    """Mean, std and scaling factor 1 / std of the sampled training latents."""
    count = sum(m["count"] for m in moments)
    if not count:
        return None
    mean = sum(m["sum"] for m in moments) / count
    std = math.sqrt(max(sum(m["squares"] for m in moments) / count - mean**2, 1e-12))
    return {"count": count, "mean": mean, "std": std, "scaling_factor": 1 / std}
