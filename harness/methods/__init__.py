"""The mixing methods by name, and what a method of one's own needs to be one of them.

Importing a module registers its methods, in the tables' order.
"""

from harness.methods import (  # noqa: F401
    timm_mixup,
    cutout,
    keepaugment,
    manifold,
    hypmix,
    resizemix,
    smoothmix,
    recursivemix,
    catchupmix,
    saliencymix,
    guidedmixup,
    rmix,
    puzzlemix,
    comixup,
    sage,
)
from harness.methods.base import (
    METHODS,
    REQUIRES,
    Mix,
    Training,
    change_output_once,
    evaluation_mode,
    kind_of,
    loss_of,
    module_of,
    needs,
    no_steps,
    normalised,
    register,
    unnormalised,
)
from harness.methods.sage import is_sage

__all__ = [
    "METHODS",
    "REQUIRES",
    "Mix",
    "Training",
    "change_output_once",
    "evaluation_mode",
    "is_sage",
    "kind_of",
    "loss_of",
    "module_of",
    "needs",
    "no_steps",
    "normalised",
    "register",
    "unnormalised",
]
