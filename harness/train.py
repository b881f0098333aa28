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

import torch
from timm.data import resolve_data_config
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, distribute_bn, random_seed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from harness.config import MOST_EPOCHS, RANK_APART
from harness.data import dataset_name, load_splits
from harness.device import autocast, from_first, made_with, timed
from harness.learner import (
    BuildLearner,
    Classifier,
    average_gradients,
    make_optimizer,
    training_step,
)
from harness.loader import make_loader
from harness.measure import measure
from harness.methods import module_of
from harness.run_config import RunConfig
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
    """Measures a network after an epoch, and chooses the epoch that counts."""

    measure: Callable[[nn.Module, Any], dict[str, Any]] = measure
    """Measures a model on a loader; one of its figures is ``top1``."""
    best: bool = False
    """Whether the epoch with the highest ``top1`` counts; all epochs are measured then. Otherwise
    the last ones count, as in the paper: their median is reported, and the last network kept."""


def train(
    config: RunConfig,
    out: Path,
    device: torch.device,
    rank: int = 0,
    *,
    learner: BuildLearner = Classifier,
    validation: Validation = Validation(),
    after_epoch: Callable[[int, nn.Module], None] | None = None,
    log: Callable[[int, dict[str, Any]], None] | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Trains and measures one run, or goes on with it, or reads its result if it is there.

    Each epoch starts from random states made of the seed and the epoch, so that a run that was cut
    off and goes on ends with the same bits as one that never was. A checkpoint that cannot be read
    is set aside, and the run starts anew. Without a terminal, each epoch is a line on stderr.

    Args:
        config: What to train.
        out: Folder of ``results.jsonl`` and ``checkpoints/``.
        device: Where.
        rank: This process's among ``config.devices``; the first one measures and writes.
        learner: Gives the batches and their losses.
        validation: Measures the network, and chooses the epoch that counts.
        after_epoch: Called by the first process with an epoch's number, from 1 on, and the model
            after it, under the run's autocast; must leave the model's weights and buffers alone.
        log: Called by the first process with an epoch's number, from 1 on, and its figures.
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
            if log is not None:
                lr = max(group["lr"] for group in run.optimizer.param_groups)
                log(epoch + 1, run.history[-1] | {"lr": lr})
            if after_epoch is not None:
                with run.autocast():
                    after_epoch(epoch + 1, run.model)
            save_checkpoint(checkpoint, run.state())
        if not sys.stderr.isatty():
            last = run.history[-1]
            top1 = f"  top-1 {last['top1']:5.2f} %" if "top1" in last else ""
            loss = f"epoch {epoch + 1}/{epochs}  loss {last['train_loss']:.4f}"
            _say(config, rank, f"{loss}{top1}  {last['seconds']:.1f} s")
        progress(epoch + 1)
    line = run.result() if rank == 0 else {}
    if rank == 0:
        append_result(results, line)
    return from_first(line, config.devices)


def load_model(config: RunConfig, out: Path, classes: int, device: torch.device) -> nn.Module:
    """Makes a run's network and loads its checkpoint: the best epoch's weights, or the last's.

    With ``model_ema``, the averaged ones.

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
    model = config.make_network(classes).to(device)
    model.load_state_dict(state.get("best", state.get("model_ema", state["model"])))
    return model


def checkpoint_path(config: RunConfig, out: Path) -> Path:
    """Returns where a run's checkpoint is, or will be."""
    return out / "checkpoints" / f"{config.name()}.pt"


class _Run:
    """Holds a run's state between two epochs."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        rank: int,
        learner: BuildLearner,
        validation: Validation,
    ) -> None:
        data, schedule = config.data, config.schedule
        self.config, self.device, self.rank, self.validation = config, device, rank, validation
        self.splits = load_splits(data, config.seed)
        random_seed(config.seed * MOST_EPOCHS)
        self.model = config.make_network(len(self.splits.classes)).to(device)
        config.load_initial_weights(self.model)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if config.compile:
            # Not the module: SAGE's and Manifold Mixup's hooks must not be compiled away.
            self.model.forward = torch.compile(self.model.forward)
        self.learner = learner(config, self.model, self.splits, device)
        data_config = resolve_data_config({}, model=self.model)
        loader = make_loader(data, self.splits.validation, data_config, device, hflip=None)
        self.validation_loader = list(loader) if data.on_device else loader
        self.module = module_of(self.learner.mix)
        self.optimizer = make_optimizer(self.model, schedule, self.module)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched=schedule.sched,
            num_epochs=schedule.epochs,
            decay_milestones=list(schedule.decay_milestones),
            warmup_epochs=schedule.warmup_epochs,
        )
        self.averaged = self._average() if schedule.model_ema else None
        self.updates = 0
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "float16")
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}

    def epoch(self, epoch: int, measured: bool) -> None:
        """Trains for one epoch, and measures the network after it."""
        random_seed(self.config.seed * MOST_EPOCHS + epoch + 1, self.rank * RANK_APART)
        self.scheduler.step(epoch)
        self.model.train()
        loader = self.learner.loader
        for shuffled in (self.splits.train, getattr(loader, "sampler", None)):
            if hasattr(shuffled, "set_epoch"):  # streams, and what divides the images
                shuffled.set_epoch(epoch)
        losses = AverageMeter()
        times: list[float] = []
        started = time.perf_counter()
        for images, targets in self._batches(f"epoch {epoch + 1}"):
            with timed(times, self.device):
                with self.autocast():
                    loss = self.learner.loss(images, targets)
                clip_grad = self.config.schedule.clip_grad
                training_step(loss, self.optimizer, self.scaler, self._average_gradients, clip_grad)
                if self.averaged is not None:
                    self.updates += 1
                    self.averaged.update(self.model, step=self.updates)
            losses.update(loss.item(), len(images))
        line = {
            "train_loss": losses.avg,
            "step_ms": median(times),
            "seconds": time.perf_counter() - started,
        }
        self._average_statistics(self.model)
        if self.averaged is not None:
            self._average_statistics(self.averaged.module)
        if measured:
            line |= self._measured(last=epoch == self.config.schedule.epochs - 1)
        self.history.append(line)
        if self.validation.best and _best_epoch(self.history) == epoch:
            weights = {name: value.clone() for name, value in self.counting.state_dict().items()}
            self.best = {"best": weights}

    @property
    def counting(self) -> nn.Module:
        """The network whose figures count: the averaged one, if there is one."""
        return self.model if self.averaged is None else self.averaged.module

    def _average(self) -> ModelEmaV3:
        """Makes the average of the network's weights, of a copy without hooks."""
        classes: Any = self.model.num_classes
        copy = self.config.make_network(classes).to(self.device)
        if self.config.channels_last:
            copy = copy.to(memory_format=torch.channels_last)
        copy.load_state_dict(self.model.state_dict())
        return ModelEmaV3(copy, decay=self.config.schedule.model_ema_decay, use_warmup=True)

    def autocast(self) -> torch.autocast:
        """Makes a context that computes in the run's type."""
        return autocast(self.config.amp, self.device)

    def _batches(self, title: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Gives an epoch's batches, laid out as the network takes them."""
        channels_last = self.config.channels_last
        layout = torch.channels_last if channels_last else torch.contiguous_format
        title = f"{self.config.method} seed {self.config.seed} {title}"
        for images, targets in tqdm(self.learner.loader, desc=title, leave=False, disable=None):
            yield images.contiguous(memory_format=layout), targets

    def _average_gradients(self) -> None:
        if self.config.devices > 1:
            average_gradients(self.model, self.module, self.config.devices)

    def _average_statistics(self, model: nn.Module) -> None:
        if self.config.devices > 1:
            distribute_bn(model, self.config.devices, reduce=True)

    def _measured(self, last: bool) -> dict[str, Any]:
        """Measures the network that counts; after the last epoch, that without averages too."""
        figures = self._measured_one(self.counting, last)
        if last and self.averaged is not None:
            plain = self._measured_one(self.model, last)
            figures |= {"top1_unaveraged": plain["top1"]} if self.rank == 0 else {}
        return figures

    def _measured_one(self, model: nn.Module, last: bool) -> dict[str, Any]:
        """Measures a network; after its last epoch it keeps clean statistics of batch norm."""
        norms = (m for m in model.modules() if isinstance(m, _BatchNorm))
        has_statistics = any(norm.track_running_stats for norm in norms)
        if self.config.batch_norm == "running" or not has_statistics:
            return self._figures_of(model)
        figures = {}
        if last and self.rank == 0:
            figures["top1_running"] = self._figures_of(model)["top1"]
        running = [(buffer, buffer.clone()) for buffer in model.buffers()]
        with self.autocast():
            update_bn((images for images, _ in self._batches("batch norm")), model)
        self._average_statistics(model)
        figures |= self._figures_of(model)
        if not last and not self.validation.best:
            for buffer, value in running:
                buffer.copy_(value)
        return figures

    def _figures_of(self, model: nn.Module) -> dict[str, Any]:
        """Measures a network as it is; only the first process does."""
        if self.rank != 0:
            return {}
        with self.autocast():
            return self.validation.measure(model, self.validation_loader)

    def result(self) -> dict[str, Any]:
        """Makes the line of ``results.jsonl``."""
        config = self.config
        line = {
            "method": config.method,
            "seed": config.seed,
            "dataset": config.data.dataset,
            "dataset_name": dataset_name(config.data),
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
            **made_with(self.device),
            "config": config.identity(),
            "history": [_without(("class_accuracy",), line) for line in self.history],
        }
        marked: dict[str, Any] = finite(line)
        return marked if all_finite(line) else marked | {"diverged": True}

    def _figures(self) -> dict[str, Any]:
        """Takes the figures of the epochs that count; each class's accuracy, of the last one."""
        measured = [_without(_OF_TRAINING, line) for line in self.history if "top1" in line]
        if self.validation.best:
            best = _best_epoch(self.history)
            return measured[best] | {"best_epoch": best + 1}
        last = _without(("class_accuracy",), measured[-1])
        medians = {
            name: _median([line[name] for line in measured if name in line]) for name in last
        }
        ends = {f"{name}_last": figure for name, figure in last.items()}
        return medians | ends | _without(tuple(last), measured[-1])

    def state(self) -> dict[str, Any]:
        """Makes what a checkpoint holds."""
        averaged = {}
        if self.averaged is not None:
            averaged = {"model_ema": self.averaged.module.state_dict(), "updates": self.updates}
        kept = {} if self.module is None else {"method": self.module.state_dict()}
        return {
            "config": self.config.identity(),
            "classes": self.splits.classes,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            **averaged,
            **kept,
            **self.best,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        for name in ("model", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        if self.averaged is not None:
            self.averaged.module.load_state_dict(state["model_ema"])
            self.updates = state["updates"]
        if self.module is not None:
            self.module.load_state_dict(state["method"])
        self.history = state["history"]
        self.best = {"best": state["best"]} if "best" in state else {}


def _begun(make: Callable[[], _Run], checkpoint: Path) -> _Run:
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
    """Writes a line to the log, between the progress bars."""
    if rank == 0:
        tqdm.write(f"{config.method:>8}  seed {config.seed}  {what}", file=sys.stderr)


def _without(names: tuple[str, ...], line: dict[str, Any]) -> dict[str, Any]:
    """Copies a dictionary less some of its keys."""
    return {key: value for key, value in line.items() if key not in names}


def _median(figures: list[float]) -> float:
    """Returns the median; not a number where one of the figures is none, which has no order."""
    return median(figures) if all(map(math.isfinite, figures)) else math.nan


def _best_epoch(history: list[dict[str, Any]]) -> int:
    """Returns the first of the epochs with the highest accuracy."""
    return max(range(len(history)), key=lambda epoch: history[epoch]["top1"])
