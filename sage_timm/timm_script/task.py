"""timm's training tasks with SAGE: what mixes the batch in a script that builds them.

Such a script builds ``Mixup``, or with the prefetcher ``FastCollateMixup``, and later the task that
holds model and loss. Here the former leave the batch as it is, and the task mixes it: there it is
normalised and on its device, the model is at hand but not wrapped for distributed training, and
autocast is that of the step.
"""

import logging
from typing import Any

from timm.data.loader import fast_collate
from timm.data.mixup import FastCollateMixup, Mixup
from timm.task import ClassificationTask, MultiLabelClassificationTask
from timm.utils.distributed import world_info_from_env
from torch import Tensor, nn

from sage_timm.mixup import SageMixup
from sage_timm.timm_script.options import flag

_logger = logging.getLogger("sage_timm")
_STATE = "sage"  # where a checkpoint's task state holds the options


class NotedMixup(Mixup):
    """Leaves the batch to the task."""

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the batch as it is."""
        return x, target


class NotedCollate(FastCollateMixup):
    """Collates as timm does where nothing is mixed, and leaves the batch to the task."""

    def __call__(self, batch: Any, _: Any = None) -> tuple[Tensor, Tensor]:
        """Returns a batch of bytes ``[B, C, H, W]``, and its targets."""
        collated: tuple[Tensor, Tensor] = fast_collate(batch)
        return collated


class WithSage:
    """Makes a classification task of timm's mix each batch by SAGE."""

    noted: Mixup
    """The script's Mixup: its arguments hold, and whether it is enabled."""
    options: dict[str, Any]
    """SAGE's own, from the command line; a checkpoint's, where that leaves them out."""
    trainable_module: nn.Module
    criterion: Any
    _mixup_fn: SageMixup | None = None

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Mixes the batch, and computes the loss of what comes of it."""
        if self._mixup_fn is None:
            self._mixup_fn = self._make()
        self._mixup_fn.mixup_enabled = self.noted.mixup_enabled
        mixed, soft_targets = self._mixup_fn(input, target)
        result: dict[str, Tensor] = super().forward(mixed, soft_targets)  # type: ignore[misc]
        return result

    def get_task_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Adds SAGE's options to what a checkpoint holds."""
        state: dict[str, Any] = super().get_task_state(*args, **kwargs)  # type: ignore[misc]
        return {**state, _STATE: self.options}

    def load_task_state(self, state: dict[str, Any] | None, *args: Any, **kwargs: Any) -> None:
        """Goes on with the options that the checkpoint was trained with.

        Raises:
            SystemExit: If the command line gives one of them another value.
        """
        super().load_task_state(state, *args, **kwargs)  # type: ignore[misc]
        saved = (state or {}).get(_STATE)
        if saved is None:
            return
        for name, value in self.options.items():
            if value != saved.get(name):
                was = "was not given" if name not in saved else f"was {saved[name]}"
                raise SystemExit(
                    f"{flag(name)} is {value}, and {was} in the run that is resumed: leave it out "
                    "to go on as before, or start a new run"
                )
        self.options = saved

    def _make(self) -> SageMixup:
        noted = self.noted
        mixup_fn = SageMixup(
            noted.mixup_alpha,
            noted.cutmix_alpha,
            noted.cutmix_minmax,
            noted.mix_prob,
            noted.switch_prob,
            noted.mode,
            noted.correct_lam,
            noted.label_smoothing,
            noted.num_classes,
            noted.multi_label,
            **self.options,
        )
        if world_info_from_env()[1] == 0:
            options = ", ".join(f"{name}={value}" for name, value in self.options.items())
            _logger.info(f"SAGE in the place of {type(noted).__name__}: {options or 'defaults'}")
        return mixup_fn.attach(self.trainable_module, self.criterion)


class SageClassificationTask(WithSage, ClassificationTask):
    """timm's classification task with SAGE."""


class SageMultiLabelClassificationTask(WithSage, MultiLabelClassificationTask):
    """timm's multi-label classification task with SAGE."""
