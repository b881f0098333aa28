"""Runs a train script with SAGE in the place of timm's Mixup."""

import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import timm.data
import timm.data.mixup
import timm.task
from timm.data.loader import PrefetchLoader
from timm.data.mixup import Mixup

from sage_timm.settings import SageSettings
from sage_timm.timm_script.options import CommandLine
from sage_timm.timm_script.task import (
    DeferredCollateMixup,
    DeferredMixup,
    SageClassificationTask,
    SageMultiLabelClassificationTask,
    SageTaskMixin,
)

_DISTILLATION = ("LogitDistillationTask", "FeatureDistillationTask", "TokenDistillationTask")


def launch(line: CommandLine) -> None:
    """Runs the script as ``__main__``, with SAGE in the place of its Mixup.

    Raises:
        SystemExit: If SAGE cannot take Mixup's place there; what the script raises, too.
    """
    script = Path(line.script)
    if not script.is_file():
        sys.exit(f"no train script {script}: give the path of timm's train.py, or of one like it")
    try:
        SageSettings(**line.options)
    except ValueError as error:
        sys.exit(f"SAGE's options do not fit: {error}")
    swap = _Swap(line.options)
    before = sys.argv, sys.path[0]
    sys.argv, sys.path[0] = [line.script, *line.arguments], str(script.resolve().parent)
    try:
        with swap.in_place():
            runpy.run_path(line.script, run_name="__main__")
    finally:
        sys.argv, sys.path[0] = before
    swap.check()


class _Swap:
    """Replaces what one run of a script imports of timm, and notes what the script builds of it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.mixup: Mixup | None = None
        self.task: SageTaskMixin | None = None

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swaps all that a script imports and builds in the block."""
        tasks: dict[str, Any] = {
            "ClassificationTask": self._building_task(SageClassificationTask),
            "MultiLabelClassificationTask": self._building_task(SageMultiLabelClassificationTask),
            **{n: _refusing(f"SAGE does not work with timm's {n}") for n in _DISTILLATION},
        }
        mixups: dict[str, Any] = {
            "Mixup": self._building_mixup(DeferredMixup),
            "FastCollateMixup": self._building_mixup(DeferredCollateMixup),
        }
        naflex: Any = _refusing("NaFlex loaders mix patches, which SAGE can't")
        with ExitStack() as stack:
            for patches in (
                patch.multiple(timm.data, **mixups, NaFlexMixup=naflex),
                patch.multiple(timm.data.mixup, **mixups),
                patch.multiple(timm.task, **tasks),
                patch.object(DeferredMixup, "__call__", self._checking(DeferredMixup.__call__)),
                patch.object(PrefetchLoader, "__iter__", self._checking(PrefetchLoader.__iter__)),
            ):
                stack.enter_context(patches)
            yield

    def check(self) -> Mixup:
        """Returns the script's Mixup, and stops the run if SAGE has not taken its place."""
        if self.mixup is None:
            sys.exit(
                "the script built neither timm's Mixup nor its FastCollateMixup, so there is "
                "nothing that SAGE could take the place of: pass --mixup 1.0"
            )
        if self.task is None:
            sys.exit(
                "the script built no ClassificationTask of timm's, in which SAGE would find model "
                "and loss: see docs/timm.md for how to use SageMixup by hand"
            )
        return self.mixup

    def _building_mixup(self, kind: type[Mixup]) -> Callable[..., Mixup]:
        def build(*args: Any, **kwargs: Any) -> Mixup:
            self.mixup = kind(*args, **kwargs)
            if not self.mixup.mixup_alpha:
                sys.exit("SAGE takes Mixup's place, which --mixup 0 turns off: pass --mixup 1.0")
            return self.mixup

        return build

    def _building_task(self, kind: type[SageTaskMixin]) -> Callable[..., SageTaskMixin]:
        def build(*args: Any, **kwargs: Any) -> SageTaskMixin:
            self.task = kind(*args, **kwargs)
            self.task.deferred, self.task.options = self.check(), dict(self.options)
            return self.task

        return build

    def _checking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Stops a loop that mixes without a task, before its first batch."""

        def checked(mixer: Any, *args: Any) -> Any:
            if isinstance(mixer, Mixup) or isinstance(
                mixer.loader.collate_fn, DeferredCollateMixup
            ):
                self.check()
            return function(mixer, *args)

        return checked


def _refusing(reason: str) -> Callable[..., NoReturn]:
    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        sys.exit(f"{reason}: run the script without python -m sage_timm")

    return refuse
