"""The mixing methods, one file each; importing a file puts its methods into the registry."""

from harness.methods import (  # noqa: F401
    comixup,
    cutmix,
    manifold,
    mixup,
    mixup_cutmix,
    none,
    puzzlemix,
    sage,
    sage_ablations,
    saliencymix,
)
from harness.methods.base import METHODS, REQUIRES

__all__ = ["METHODS", "REQUIRES"]
