"""The mixing methods, one file each; importing a file puts its methods into the registry.

They stand in tables in the order of this list.
"""

from harness.methods import (  # noqa: F401
    none,
    mixup,
    cutmix,
    mixup_cutmix,
    manifold,
    saliencymix,
    puzzlemix,
    comixup,
    sage,
    sage_ablations,
)
from harness.methods.base import METHODS, REQUIRES

__all__ = ["METHODS", "REQUIRES"]
