"""Optical-flow representation alignment: targets from a clip's motion, and the loss that ties hidden tokens to them.

flow.py estimates motion, representation.py describes it on the token grid, targets.py puts both together for a clip,
loss.py compares hidden tokens with targets.
"""

from medsora.alignment.flow import flow_image
from medsora.alignment.loss import (
    AlignmentProjector,
    alignment_loss,
    alignment_pairs,
    released_alignment_loss,
)
from medsora.alignment.targets import (
    AlignmentSettings,
    alignment_targets,
    latent_flows,
    load_alignment_weights,
)

__all__ = [
    "AlignmentProjector",
    "AlignmentSettings",
    "alignment_loss",
    "alignment_pairs",
    "alignment_targets",
    "flow_image",
    "latent_flows",
    "load_alignment_weights",
    "released_alignment_loss",
]
