"""Trains one network with one method and one seed: the loop that every result comes from."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, distribute_bn, random_seed, reduce_tensor
from torch import nn
from tqdm import tqdm

from harness.config import MOST_EPOCHS, RunConfig, ScheduleConfig
from harness.data import load_splits, make_loader
from harness.measure import MEASURES, measure
from harness.methods import METHODS
from harness.results import append_result, load_checkpoint, read_results, save_checkpoint

_RANK_APART = 1_000_003  # between the random states of two processes
_EPOCHS_MEASURED = 10  # the paper reports the median accuracy of the last ten epochs


def train(config: RunConfig, out: Path, device: torch.device, rank: int = 0) -> dict[str, Any]:
    """Trains and measures one run, or goes on with it, or reads its result if it is there.

    Each epoch starts from random states made of the seed and the epoch, so that a run that was cut
    off and goes on ends with the same bits as one that never was.

    Args:
        config: What to train.
        out: Folder of ``results.jsonl`` and ``checkpoints/``.
        device: Where.
        rank: This process's among ``config.devices``; the first one measures and writes.

    Returns:
        The line of ``results.jsonl``; to other ranks than the first nothing, unless it was there.

    Raises:
        ValueError: If a setting does not fit.
    """
    results = out / "results.jsonl"
    identity = config.identity()
    for line in read_results(results):
        if line["config"] == identity:
            return line
    run = _Run(config, device, rank)
    checkpoint = checkpoint_path(config, out)
    state = load_checkpoint(checkpoint, device)
    if state is not None:
        run.load_state(state)
    epochs = config.schedule.epochs
    for epoch in range(len(run.history), epochs):
        run.epoch(epoch, measured=epoch >= epochs - _EPOCHS_MEASURED)
        if rank == 0:
            save_checkpoint(checkpoint, run.state())
    line = run.result() if rank == 0 else {}
    if rank == 0:
        append_result(results, line)
    if config.devices > 1:
        torch.distributed.barrier()  # until the line is there, for all to see
    return line


class _Run:
    """A run's state between two epochs."""

    def __init__(self, config: RunConfig, device: torch.device, rank: int) -> None:
        schedule = config.schedule
        self.config = config
        self.device = device
        self.rank = rank
        self.splits = load_splits(config.data, config.seed)
        random_seed(config.seed * MOST_EPOCHS)
        model = timm.create_model(config.model, num_classes=len(self.splits.classes))
        self.model = model.to(device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if config.compile:
            # Not the module: SAGE's and Manifold Mixup's hooks must not be compiled away.
            self.model.forward = torch.compile(self.model.forward)
        model_config = resolve_data_config({}, model=model)
        self.train_loader, self.validation_loader = (
            make_loader(config.data, dataset, model_config, device, hflip, config.devices)
            for dataset, hflip in (
                (self.splits.train, self.splits.hflip),
                (self.splits.validation, None),
            )
        )
        if not len(self.train_loader):
            raise ValueError(
                f"batch_size={config.data.batch_size} is more than the "
                f"{len(self.splits.train)} training images"
            )
        self.optimizer = make_optimizer(self.model, schedule)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched=schedule.sched,
            num_epochs=schedule.epochs,
            decay_milestones=list(schedule.decay_milestones),
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "float16")
        self.loss_fn = SoftTargetCrossEntropy()
        self.mix = METHODS[config.method](
            config.mixing, self.model, self.loss_fn, len(self.splits.classes)
        )
        self.history: list[dict[str, float]] = []

    def epoch(self, epoch: int, measured: bool) -> None:
        """Trains for one epoch, and measures the network after it."""
        random_seed(self.config.seed * MOST_EPOCHS + epoch + 1, self.rank * _RANK_APART)
        self.scheduler.step(epoch)
        self.model.train()
        if hasattr(self.splits.train, "set_epoch"):  # streams shuffle by it
            self.splits.train.set_epoch(epoch)
        if hasattr(self.train_loader.sampler, "set_epoch"):
            self.train_loader.sampler.set_epoch(epoch)
        losses = AverageMeter()
        times: list[float] = []
        title = f"{self.config.method} seed {self.config.seed} epoch {epoch + 1}"
        started = time.perf_counter()
        for images, targets in tqdm(self.train_loader, desc=title, leave=False, disable=None):
            if self.config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with _timed(times, self.device):
                with self._autocast():
                    mixed, soft_targets = self.mix(images, targets)
                    loss = self.loss_fn(self.model(mixed), soft_targets)
                self.optimizer.zero_grad()
                self.scaler.scale(loss).backward()
                if self.config.devices > 1:
                    average_gradients(self.model, self.config.devices)
                self.scaler.step(self.optimizer)
                self.scaler.update()
            losses.update(loss.item(), len(images))
        line = {
            "train_loss": losses.avg,
            "step_ms": median(times),
            "seconds": time.perf_counter() - started,
        }
        if self.config.devices > 1:
            distribute_bn(self.model, self.config.devices, reduce=True)
        if measured and self.rank == 0:
            with self._autocast():
                line |= measure(self.model, self.validation_loader)
        self.history.append(line)

    def _autocast(self) -> torch.autocast:
        kind = self.config.amp
        dtype = None if kind == "none" else getattr(torch, kind)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def result(self) -> dict[str, Any]:
        config = self.config
        measured = [line for line in self.history if "top1" in line]
        return {
            "method": config.method,
            "seed": config.seed,
            "dataset": config.data.dataset,
            "model": config.model,
            "epochs": config.schedule.epochs,
            "train_size": len(self.splits.train),
            "validation_size": len(self.splits.validation),
            **{name: median(line[name] for line in measured) for name in MEASURES},
            **{f"{name}_last": measured[-1][name] for name in MEASURES},
            "train_loss": self.history[-1]["train_loss"],
            "step_ms": median(line["step_ms"] for line in self.history),
            "train_seconds": sum(line["seconds"] for line in self.history),
            "device": device_name(self.device),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "config": config.identity(),
            "history": self.history,
        }

    def state(self) -> dict[str, Any]:
        return {
            "config": self.config.identity(),
            "classes": self.splits.classes,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = state["history"]


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


def average_gradients(model: nn.Module, devices: int) -> None:
    """Averages the gradients over all processes.

    Not by ``DistributedDataParallel``, so that methods and checkpoints meet the network itself.
    """
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.copy_(reduce_tensor(parameter.grad.contiguous(), devices))


def load_model(config: RunConfig, out: Path, classes: int, device: torch.device) -> nn.Module:
    """Makes a run's network and loads its checkpoint.

    Raises:
        ValueError: If there is none in ``out``.
    """
    path = checkpoint_path(config, out)
    state = load_checkpoint(path, device)
    if state is None:
        raise ValueError(f"no checkpoint {path}: train this run first, with the same settings")
    model: nn.Module = timm.create_model(config.model, num_classes=classes).to(device)
    model.load_state_dict(state["model"])
    return model


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the CPU's with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} thread(s)"


def checkpoint_path(config: RunConfig, out: Path) -> Path:
    """Where a run's checkpoint is, or will be."""
    return out / "checkpoints" / f"{config.name()}.pt"


@contextmanager
def _timed(times: list[float], device: torch.device) -> Iterator[None]:
    """Appends the milliseconds that a block took."""
    if device.type != "cuda":
        started = time.perf_counter()
        yield
        times.append(1000 * (time.perf_counter() - started))
        return
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    yield
    end.record()
    end.synchronize()
    times.append(start.elapsed_time(end))
