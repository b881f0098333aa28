"""Trains one network with one method and one seed: the loop that every result comes from."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, distribute_bn, random_seed, reduce_tensor
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from harness.config import MOST_EPOCHS, RANK_APART, RunConfig, ScheduleConfig
from harness.data import load_splits
from harness.device import autocast, device_name, from_first, timed
from harness.learner import BuildLearner, Classifier
from harness.loader import make_loader
from harness.measure import measure
from harness.models import create_network
from harness.store import (
    RUN,
    all_finite,
    append_result,
    finite,
    load_checkpoint,
    read_results,
    save_checkpoint,
)

_OF_TRAINING = ("train_loss", "step_ms", "seconds")  # of an epoch; its other figures are measured

Progress = Callable[[int], None]
"""Is told how many epochs of a run are done."""


def no_progress(_epochs: int) -> None:
    """Shows no progress."""


@dataclass(frozen=True)
class Validation:
    """What is measured of a network after an epoch, and which epoch's network counts."""

    measure: Callable[[nn.Module, Any], dict[str, Any]] = measure
    """Measures a model on a loader; one of its figures is ``top1``."""
    best: bool = False
    """Whether the epoch with the highest ``top1`` counts, of which all are measured then; else the
    last ones do, as the paper has it: their median is reported, and the last network kept."""


def train(
    config: RunConfig,
    out: Path,
    device: torch.device,
    rank: int = 0,
    *,
    learner: BuildLearner = Classifier,
    validation: Validation = Validation(),
    after_epoch: Callable[[int, nn.Module], None] | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Trains and measures one run, or goes on with it, or reads its result if it is there.

    Each epoch starts from random states made of the seed and the epoch, so that a run that was cut
    off and goes on ends with the same bits as one that never was. A checkpoint that cannot be read
    is set aside, and the run starts anew.

    Without a terminal, each epoch is a line on stderr. See :func:`harness.runs.in_turn` for several
    processes on one folder.

    Args:
        config: What to train.
        out: Folder of ``results.jsonl`` and ``checkpoints/``.
        device: Where.
        rank: This process's among ``config.devices``; the first one measures and writes.
        learner: What gives the batches and their losses.
        validation: What is measured after an epoch, and which epoch counts.
        after_epoch: Called by the first process with an epoch's number, from 1 on, and the model
            after it, under the run's autocast; must leave the model's weights and buffers alone.
        progress: Is told how many epochs are done, those of an earlier call too.

    Returns:
        The line of ``results.jsonl``.

    Raises:
        ValueError: If a setting does not fit.
    """
    results = out / "results.jsonl"
    identity = config.identity()
    epochs = config.schedule.epochs
    found = [line for line in read_results(results, RUN) if line["config"] == identity][:1]
    found = from_first(found, config.devices)  # it may have come between two processes' looks
    if found:
        (line,) = found
        when = f" on {line['finished'][:10]}" if "finished" in line else ""
        _say(config, rank, f"skipped, done{when}")
        progress(epochs)
        return line
    checkpoint = checkpoint_path(config, out)
    run = _begun(lambda: _Run(config, device, rank, learner, validation), checkpoint)
    if run.history:
        _say(config, rank, f"resumed at epoch {len(run.history)} of {epochs}")
        progress(len(run.history))
    for epoch in range(len(run.history), epochs):
        run.epoch(epoch, measured=validation.best or epoch >= epochs - config.measured_epochs)
        if rank == 0:
            if after_epoch is not None:
                with run.autocast():
                    after_epoch(epoch + 1, run.model)
            save_checkpoint(checkpoint, run.state())
        if not sys.stderr.isatty():
            _say(config, rank, _described(run.history, epochs))
        progress(epoch + 1)
    line = run.result() if rank == 0 else {}
    if rank == 0:
        append_result(results, line)
    return from_first(line, config.devices)


def _begun(make: Callable[[], "_Run"], checkpoint: Path) -> "_Run":
    """Makes a run, and loads its checkpoint; sets one aside that cannot be read."""
    run = make()
    try:
        state = load_checkpoint(checkpoint, run.device)
        if state is not None:
            run.load_state(state)
    except (PermissionError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a broken file can make torch.load raise anything
        if run.rank == 0:
            aside = checkpoint.with_suffix(".broken")
            os.replace(checkpoint, aside)
            reason = str(error).partition("\n")[0]
            said = f"starts anew: its checkpoint was broken, and is now {aside}: {reason}"
            _say(run.config, run.rank, said)
        return make()
    return run


def _say(config: RunConfig, rank: int, what: str) -> None:
    """Writes a line to the log, beside what bars there are."""
    if rank == 0:
        tqdm.write(f"{config.method:>8}  seed {config.seed}  {what}", file=sys.stderr)


def _described(history: list[dict[str, float]], epochs: int) -> str:
    """Describes the last epoch of so many."""
    last = history[-1]
    top1 = f"  top-1 {last['top1']:5.2f} %" if "top1" in last else ""
    place = f"epoch {len(history)}/{epochs}"
    return f"{place}  loss {last['train_loss']:.4f}{top1}  {last['seconds']:.1f} s"


class _Run:
    """A run's state between two epochs."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        rank: int,
        learner: BuildLearner,
        validation: Validation,
    ) -> None:
        schedule = config.schedule
        self.config = config
        self.device = device
        self.rank = rank
        self.validation = validation
        self.splits = load_splits(config.data, config.seed)
        random_seed(config.seed * MOST_EPOCHS)
        data = config.data
        model = create_network(
            config.model, len(self.splits.classes), data.image_size, data.in_chans
        )
        self.model = model.to(device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if config.compile:
            # Not the module: SAGE's and Manifold Mixup's hooks must not be compiled away.
            self.model.forward = torch.compile(self.model.forward)
        self.learner = learner(config, self.model, self.splits, device)
        self.validation_loader = make_loader(
            config.data,
            self.splits.validation,
            resolve_data_config({}, model=self.model),
            device,
            hflip=None,
        )
        if config.data.on_device:
            self.validation_loader = list(self.validation_loader)
        self.optimizer = make_optimizer(self.model, schedule)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched=schedule.sched,
            num_epochs=schedule.epochs,
            decay_milestones=list(schedule.decay_milestones),
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "float16")
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}

    def epoch(self, epoch: int, measured: bool) -> None:
        """Trains for one epoch, and measures the network after it."""
        random_seed(self.config.seed * MOST_EPOCHS + epoch + 1, self.rank * RANK_APART)
        self.scheduler.step(epoch)
        self.model.train()
        if hasattr(self.splits.train, "set_epoch"):  # streams shuffle by it
            self.splits.train.set_epoch(epoch)
        loader = self.learner.loader
        if hasattr(getattr(loader, "sampler", None), "set_epoch"):
            loader.sampler.set_epoch(epoch)
        losses = AverageMeter()
        times: list[float] = []
        title = f"{self.config.method} seed {self.config.seed} epoch {epoch + 1}"
        started = time.perf_counter()
        for images, targets in tqdm(loader, desc=title, leave=False, disable=None):
            if self.config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with timed(times, self.device):
                with self.autocast():
                    loss = self.learner.loss(images, targets)
                training_step(loss, self.optimizer, self.scaler, self._average_gradients)
            losses.update(loss.item(), len(images))
        line = {
            "train_loss": losses.avg,
            "step_ms": median(times),
            "seconds": time.perf_counter() - started,
        }
        if self.config.devices > 1:
            distribute_bn(self.model, self.config.devices, reduce=True)
        if measured:
            line |= self._measured(last=epoch == self.config.schedule.epochs - 1)
        self.history.append(line)
        if self.validation.best and _best_epoch(self.history) == epoch:
            weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.best = {"best": weights}

    def _measured(self, last: bool) -> dict[str, Any]:
        """Measures the network; after its last epoch it keeps clean statistics of batch norm."""
        if self.config.batch_norm == "running" or not has_batch_norm(self.model):
            return self._figures_now()
        figures = {"top1_running": self._figures_now()["top1"]} if last and self.rank == 0 else {}
        running = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        with self.autocast():
            update_bn(self._clean_images(), self.model)
        if self.config.devices > 1:
            distribute_bn(self.model, self.config.devices, reduce=True)
        figures |= self._figures_now()
        if not last and not self.validation.best:
            for buffer, value in running:
                buffer.copy_(value)
        return figures

    def _figures_now(self) -> dict[str, Any]:
        """Measures the network as it is; only the first process does."""
        if self.rank != 0:
            return {}
        with self.autocast():
            return self.validation.measure(self.model, self.validation_loader)

    def _clean_images(self) -> Iterator[Tensor]:
        """Gives the training images of an epoch, not mixed, laid out as the network takes them."""
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        loader = tqdm(self.learner.loader, desc="batch norm", leave=False, disable=None)
        for images, _targets in loader:
            yield images.contiguous(memory_format=layout)

    def autocast(self) -> torch.autocast:
        """Makes a context in which the run's type is computed in."""
        return autocast(self.config.amp, self.device)

    def _average_gradients(self) -> None:
        """Averages the gradients over all processes.

        Not by ``DistributedDataParallel``, so that methods and checkpoints meet the network itself.
        """
        devices = self.config.devices
        if devices == 1:
            return
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.copy_(reduce_tensor(parameter.grad.contiguous(), devices))

    def result(self) -> dict[str, Any]:
        config = self.config
        line = {
            "method": config.method,
            "seed": config.seed,
            "dataset": config.data.dataset,
            "model": config.model,
            "epochs": config.schedule.epochs,
            "train_size": len(self.splits.train),
            "validation_size": len(self.splits.validation),
            "broken_images": self.splits.broken,
            "notes": self.splits.notes,
            "classes": self.splits.classes,
            **self._figures(),
            "train_loss": self.history[-1]["train_loss"],
            "step_ms": median(line["step_ms"] for line in self.history),
            "train_seconds": sum(line["seconds"] for line in self.history),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "device": device_name(self.device),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "config": config.identity(),
            "history": [_without(line, "class_accuracy") for line in self.history],
        }
        marked: dict[str, Any] = finite(line)
        return marked if all_finite(line) else marked | {"diverged": True}

    def _figures(self) -> dict[str, Any]:
        """What was measured, of the epochs that count; each class's accuracy, of the last one."""
        measured = [
            {name: figure for name, figure in line.items() if name not in _OF_TRAINING}
            for line in self.history
            if "top1" in line
        ]
        if self.validation.best:
            best = _best_epoch(self.history)
            return measured[best] | {"best_epoch": best + 1}
        last = _without(measured[-1], "class_accuracy")
        classes = {name: figure for name, figure in measured[-1].items() if name not in last}
        medians = {
            name: _median([line[name] for line in measured if name in line]) for name in last
        }
        return medians | {f"{name}_last": figure for name, figure in last.items()} | classes

    def state(self) -> dict[str, Any]:
        return {
            "config": self.config.identity(),
            "classes": self.splits.classes,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            **self.best,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = state["history"]
        self.best = {"best": state["best"]} if "best" in state else {}


def make_optimizer(model: nn.Module, schedule: ScheduleConfig) -> torch.optim.Optimizer:
    """Makes the optimiser that every run trains with: SGD with Nesterov momentum."""
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model,
        opt="sgd",
        lr=schedule.lr,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
    )
    return optimizer


def has_batch_norm(model: nn.Module) -> bool:
    """Tells whether a network keeps statistics of its batches."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules())


def training_step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    before_step: Callable[[], None] | None = None,
) -> None:
    """Takes the gradients of a loss, and one step of the optimiser along them."""
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    if before_step is not None:
        before_step()
    scaler.step(optimizer)
    scaler.update()


def load_model(config: RunConfig, out: Path, classes: int, device: torch.device) -> nn.Module:
    """Makes a run's network and loads its checkpoint: the best epoch's weights, or the last's.

    Raises:
        ValueError: If there is none in ``out``, or it cannot be read.
    """
    path = checkpoint_path(config, out)
    try:
        state = load_checkpoint(path, device)
    except (PermissionError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is broken ({reason}): train in another folder") from error
    if state is None:
        raise ValueError(f"no checkpoint {path}: train this run first, with the same settings")
    data = config.data
    model = create_network(config.model, classes, data.image_size, data.in_chans).to(device)
    model.load_state_dict(state.get("best", state["model"]))
    return model


def checkpoint_path(config: RunConfig, out: Path) -> Path:
    """Where a run's checkpoint is, or will be."""
    return out / "checkpoints" / f"{config.name()}.pt"


def _without(line: dict[str, Any], name: str) -> dict[str, Any]:
    """Copies a dictionary less one of its keys."""
    return {key: value for key, value in line.items() if key != name}


def _median(figures: list[float]) -> float:
    """Gives the median; not a number where one of the figures is none, which has no order."""
    return median(figures) if all(map(math.isfinite, figures)) else math.nan


def _best_epoch(history: list[dict[str, Any]]) -> int:
    """The first of the epochs with the highest accuracy."""
    return max(range(len(history)), key=lambda epoch: history[epoch]["top1"])
