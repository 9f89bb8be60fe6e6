"""Where a model's parameters are: whole in every process (data parallelism), or divided among them (FSDP).

Divided, a process holds a share of each weight, of its gradient, moments and average; a block's weights are whole only
while the block computes (Rajbhandari et al. 2020, "ZeRO", stage 3; Zhao et al. 2023, "PyTorch FSDP"). PyTorch's
`fully_shard` does it, as accelerate's configuration asks. What leaves the training loop (checkpoints, models, looks at
them) is whole in either way, so a run may change from one to the other.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medsora.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin

    from medsora.training.ema import MovingAverage

BLOCK = "Block"  # the class of the denoiser's blocks

# Of accelerate's configuration: its names, the environment variables it becomes, their defaults, the values served.
_SERVED = (
    ("fsdp_version", "FSDP_VERSION", "1", "2"),
    ("fsdp_auto_wrap_policy", "FSDP_AUTO_WRAP_POLICY", "NO_WRAP", "TRANSFORMER_BASED_WRAP"),
    ("fsdp_transformer_layer_cls_to_wrap", "FSDP_TRANSFORMER_CLS_TO_WRAP", BLOCK, BLOCK),
    ("fsdp_offload_params", "FSDP_OFFLOAD_PARAMS", "false", "false"),
    ("fsdp_activation_checkpointing", "FSDP_ACTIVATION_CHECKPOINTING", "false", "false"),
    ("mixed_precision", "ACCELERATE_MIXED_PRECISION", "no", "no"),
    ("use_parallelism_config", "ACCELERATE_USE_PARALLELISM_CONFIG", "false", "false"),
)
_OURS = {
    "fsdp_activation_checkpointing": " (--denoiser.gradient_checkpointing true recomputes blocks)",
    "mixed_precision": " (--vae.precision and --denoiser.precision choose it)",
}


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """accelerate's settings of FSDP for this command; None where its configuration does not ask for it.

    Raises UserError for what is not served: DeepSpeed, Megatron, FSDP's first version, and options that would be
    passed over.
    """
    for way in ("DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{way}", "false").lower() == "true":
            raise UserError(
                f"accelerate's configuration: got {way}, wants distributed_type MULTI_GPU, MULTI_CPU or FSDP "
                "(with fsdp_version: 2)"
            )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    for name, variable, default, served in _SERVED:
        found = os.environ.get(variable, default)
        if found.upper() != served.upper():
            raise UserError(
                f"accelerate's configuration for FSDP: got {name}: {found}, wants {name}: {served}{_OURS.get(name, '')}"
            )
    from accelerate.utils import FullyShardedDataParallelPlugin

    return FullyShardedDataParallelPlugin()


class Replicated:
    """Each process holds the whole module; gradients are exchanged once a step.

    model: what a forward pass calls.
    """

    def __init__(self, module: nn.Module, accelerator: Accelerator):
        self.module, self.accelerator = module, accelerator
        self.model = accelerator.prepare_model(module)

    def exchanging(self, last: bool) -> AbstractContextManager:
        """Around the forward and backward pass of a micro-batch. last: of the step's."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole of a parameter or of what belongs to one; every process calls it."""
        return tensor

    def gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The whole of each tensor in the first process; every process calls it, and what others get is not used."""
        return tensors

    def share(self, whole: Tensor, like: Tensor) -> Tensor:
        """This process's part of a whole tensor that every process has, as `like` is divided and where it is."""
        return whole.to(like.device)

    @contextlib.contextmanager
    def averaged(self, average: MovingAverage) -> Iterator[nn.Module | None]:
        """Within the block, in the first process: the module with the averaged weights; None in the others.

        Every process enters it; the first alone may compute in it.
        """
        if not self.accelerator.is_main_process:
            yield None
            return
        with average.applied():
            yield self.module


class Divided(Replicated):
    """Each process holds a share of each parameter; the module's parameters become DTensors, rows of the whole.

    The denoiser's blocks are gathered one by one, what is outside of blocks at once. Gradients are exchanged with each
    micro-batch, so that none waits whole for the next one. The first process has a whole copy of the module in main
    memory, to look at averaged weights with.
    """

    def __init__(self, module: nn.Module, accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.module, self.accelerator = module, accelerator
        self.copy = copy.deepcopy(module) if accelerator.is_main_process else None
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for block in divided_blocks(module):
            fully_shard(block, mesh=mesh, reshard_after_forward=plugin.reshard_after_forward)
        self.model = fully_shard(module, mesh=mesh)

    def exchanging(self, last: bool) -> AbstractContextManager:
        return contextlib.nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():  # one after the other: at most one is whole on the device
            whole = self.whole(tensor.detach())
            if self.copy is not None:
                found[name] = whole.cpu()
        return found

    def share(self, whole: Tensor, like: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        whole = whole.to(like.device)
        if not isinstance(like, DTensor):
            return whole
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)

    @contextlib.contextmanager
    def averaged(self, average: MovingAverage) -> Iterator[nn.Module | None]:
        values = self.gathered(average.values)
        if self.copy is None:
            yield None
            return
        self.copy.load_state_dict(values | dict(self.module.named_buffers()), strict=False)
        self.copy.to(self.accelerator.device)
        try:
            yield self.copy
        finally:
            self.copy.to("cpu")


def divided_blocks(module: nn.Module) -> list[nn.Module]:
    """The parts of a module whose parameters are gathered for themselves; the rest are gathered together."""
    return [part for part in module.modules() if type(part).__name__ == BLOCK]


def laid_out(module: nn.Module, accelerator: Accelerator) -> Replicated:
    """Places a module on this process's device, divided where accelerate's configuration asks for it."""
    plugin = fsdp_plugin()
    if plugin is None or not torch.distributed.is_initialized():
        return Replicated(module, accelerator)
    return Divided(module, accelerator, plugin)
