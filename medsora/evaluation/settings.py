"""What `python -m medsora.evaluate` can be told."""

from __future__ import annotations

from dataclasses import dataclass

from medsora.alignment.flow import ESTIMATORS
from medsora.errors import UserError

SPLITS = ("all", "train", "val")


@dataclass
class EvaluateSettings:
    """What is measured, on how much, and by which networks.

    Args:
        num_videos: Generated videos measured, at most; of a run so many are sampled. 2048 is usual for FVD.
        reference_videos: Recorded windows measured, at most, drawn from all there are.
        num_frames: Frames of a clip on both sides; null: those of the generated videos.
        stride: Step between the frames taken of a generated video.
        reference_stride: Step between the frames taken of a recording; null: as the run was trained, or else the
            data prepared.
        size: Height and width in pixels on both sides; null: the generated videos' shorter side.
        split: Recordings compared with: "all", "train" or "val".
        flips: Count mirror images of recordings as recordings; null: as the run was trained, or else the data
            prepared.
        seed: Decides which windows are drawn, and of a run the samples.
        steps: Denoising steps, where a run is sampled.
        scheduler: "ddim", "ddpm", ...; null: the model's own.
        guidance_scale: How strongly class labels guide, where the model has classes (they take turns); 1: not extra.
        batch_size: Clips a network sees together; decides memory and speed.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        i3d: i3d_torchscript.pt#sha256=HEX, for FVD; it runs code, so its checksum must be stated.
        videomae: File or folder or hub name of VideoMAE weights, for CD-FVD.
        inception: pt_inception-2015-12-05-6726825d.pth, for FID and IS.
        lpips: Folder or file with VGG16 and LPIPS weights, for reconstruction.
        flow: What estimates motion: "dis" (no weights) or "raft".
        flow_weights: For "raft", a file or a name that torchvision knows.
        reconstruction_clips: Recorded clips that a run's video VAE reconstructs, at most; 0: none.
        nearest: Generated videos whose nearest recording is looked for, the first so many; 0: none.
        bands: Radial bands of the spectrum.
    """

    num_videos: int = 256
    reference_videos: int = 2048
    num_frames: int | None = None
    stride: int = 1
    reference_stride: int | None = None
    size: int | None = None
    split: str = "all"
    flips: bool | None = None
    seed: int = 0
    steps: int = 25
    scheduler: str | None = None
    guidance_scale: float = 1.0
    batch_size: int = 8
    device: str = "auto"
    i3d: str | None = None
    videomae: str | None = None
    inception: str | None = None
    lpips: str | None = None
    flow: str = "dis"
    flow_weights: str | None = None
    reconstruction_clips: int = 64
    nearest: int = 64
    bands: int = 16

    def check(self) -> None:
        """Raises `UserError` for a value outside its range."""
        least = {"num_videos": 2, "reference_videos": 2, "num_frames": 1, "stride": 1, "reference_stride": 1,
                 "size": 16, "steps": 1, "batch_size": 1, "reconstruction_clips": 0, "nearest": 0,
                 "bands": 1}  # fmt: skip
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise UserError(f"--{name}: got {value}, wants {lowest} or more")
        for name, known in (("split", SPLITS), ("flow", ESTIMATORS)):
            if getattr(self, name) not in known:
                raise UserError(f"--{name}: got {getattr(self, name)!r}, wants one of {', '.join(known)}")
        if self.flow == "raft" and not self.flow_weights:
            raise UserError("--flow_weights: got none, wants a file of RAFT weights or a name that torchvision knows")
