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
    NotedCollate,
    NotedMixup,
    SageClassificationTask,
    SageMultiLabelClassificationTask,
    WithSage,
)

_DISTILLATION = ("LogitDistillationTask", "FeatureDistillationTask", "TokenDistillationTask")
_BY_HAND = "see docs/timm.md for how to use SageMixup by hand"


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
    """What takes Mixup's place in one run of a script.

    Args:
        options: SAGE's options that were given.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.noted: Mixup | None = None
        self.task: WithSage | None = None

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swaps all that a script imports and builds in the block."""
        with ExitStack() as stack:

            def put(owner: Any, name: str, value: Any) -> None:
                stack.enter_context(patch.object(owner, name, value))

            for module in (timm.data, timm.data.mixup):
                put(module, "Mixup", self._noting(NotedMixup))
                put(module, "FastCollateMixup", self._noting(NotedCollate))
            put(timm.data, "NaFlexMixup", _refusing("NaFlex loaders mix patches, which SAGE can't"))
            put(timm.task, "ClassificationTask", self._binding(SageClassificationTask))
            put(
                timm.task,
                "MultiLabelClassificationTask",
                self._binding(SageMultiLabelClassificationTask),
            )
            for name in _DISTILLATION:
                put(timm.task, name, _refusing(f"SAGE does not work with timm's {name}"))
            put(NotedMixup, "__call__", self._checking(NotedMixup.__call__))
            put(PrefetchLoader, "__iter__", self._checking(PrefetchLoader.__iter__))
            yield

    def check(self) -> Mixup:
        """Returns the script's Mixup, and stops the run if SAGE has not taken its place."""
        if self.noted is None:
            sys.exit(
                "the script built neither timm's Mixup nor its FastCollateMixup, so there is "
                "nothing that SAGE could take the place of: pass --mixup 1.0"
            )
        if self.task is None:
            sys.exit(
                "the script built no ClassificationTask of timm's, in which SAGE would find model "
                f"and loss: {_BY_HAND}"
            )
        return self.noted

    def _noting(self, kind: type[Mixup]) -> Callable[..., Mixup]:
        def build(*args: Any, **kwargs: Any) -> Mixup:
            noted = kind(*args, **kwargs)
            if not noted.mixup_alpha:
                sys.exit("SAGE takes Mixup's place, which --mixup 0 turns off: pass --mixup 1.0")
            self.noted = noted
            return noted

        return build

    def _binding(self, kind: type[WithSage]) -> Callable[..., WithSage]:
        def build(*args: Any, **kwargs: Any) -> WithSage:
            task = kind(*args, **kwargs)
            self.task = task
            noted = self.check()
            task.noted, task.options = noted, dict(self.options)
            return task

        return build

    def _checking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Stops a loop that mixes without a task, before its first batch."""

        def checked(mixer: Any, *args: Any) -> Any:
            if isinstance(mixer, Mixup) or isinstance(mixer.loader.collate_fn, NotedCollate):
                self.check()
            return function(mixer, *args)

        return checked


def _refusing(reason: str) -> Callable[..., NoReturn]:
    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        sys.exit(f"{reason}: run the script without python -m sage_timm")

    return refuse
