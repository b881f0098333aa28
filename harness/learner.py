"""Learning: batches and the loss of each, the optimiser, and one step of it."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from timm.data import resolve_data_config
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.utils import dispatch_clip_grad, reduce_tensor
from torch import Tensor, nn

from harness.config import ScheduleConfig
from harness.data import Splits
from harness.loader import make_loader
from harness.methods import METHODS, Mix, Training, loss_of
from harness.run_config import RunConfig


class Learner(Protocol):
    """Gives the batches of an epoch, and the loss of each."""

    loader: Iterable[tuple[Tensor, Tensor]]
    """Normalised images ``[B, C, H, W]`` and class indices ``[B]``."""
    mix: Mix
    """The run's method."""

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes a batch's loss, a scalar."""
        ...


BuildLearner = Callable[[RunConfig, nn.Module, Splits, torch.device], Learner]
"""Makes a learner for a run's settings, its network and its data."""


class Classifier:
    """Learns to tell the training classes apart, from batches that the run's method mixes."""

    def __init__(
        self, config: RunConfig, model: nn.Module, splits: Splits, device: torch.device
    ) -> None:
        data_config = resolve_data_config({}, model=model)
        self.loader = make_loader(
            config.data, splits.train, data_config, device, splits.hflip, config.devices
        )
        if not len(self.loader):
            raise ValueError(
                f"batch_size={config.data.batch_size} is more than the "
                f"{len(splits.train)} training images"
            )
        self.model = model
        self.loss_fn = make_loss(config.schedule)
        training = Training(config.mixing, model, self.loss_fn, len(splits.classes))
        self.mix = METHODS[config.method](training)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss of the mixed images and their targets."""
        mixed, soft_targets = self.mix(images, targets)
        return loss_of(self.mix, self.loss_fn)(self.model(mixed), soft_targets)


def training_step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    before_step: Callable[[], None] | None = None,
    clip_grad: float | None = None,
) -> None:
    """Takes the gradients of a loss, scales them down to a norm, and steps along them."""
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    if before_step is not None:
        before_step()
    if clip_grad is not None:
        scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        dispatch_clip_grad(parameters, clip_grad)
    scaler.step(optimizer)
    scaler.update()


def make_loss(schedule: ScheduleConfig) -> nn.Module:
    """Makes the loss that every method trains with, for soft targets, as in timm's script."""
    if schedule.bce_loss:
        return BinaryCrossEntropy(target_threshold=schedule.bce_target_thresh)
    return SoftTargetCrossEntropy()


def make_optimizer(
    model: nn.Module, schedule: ScheduleConfig, beside: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Makes the optimiser that every method trains with.

    Args:
        model: The network.
        schedule: The settings.
        beside: What the method trains along with the network.

    Raises:
        ValueError: If timm cannot make it here, or if it needs second derivatives.
    """
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=schedule.opt,
            lr=schedule.lr,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            layer_decay=schedule.layer_decay,
        )
    except Exception as error:  # a module that is missing is an assertion of timm's
        reason = str(error).partition("\n")[0]
        raise ValueError(f"opt={schedule.opt!r} cannot be had here: {reason}") from error
    if getattr(optimizer, "is_second_order", False):
        raise ValueError(f"opt={schedule.opt!r} needs second derivatives, which no method gives it")
    if beside is not None and any(True for _ in beside.parameters()):
        for group in param_groups_weight_decay(beside, schedule.weight_decay):
            optimizer.add_param_group(group)
    return optimizer


def average_gradients(model: nn.Module, beside: nn.Module | None, devices: int) -> None:
    """Averages the gradients of a network, and of what a method trains beside it, over processes.

    Not by ``DistributedDataParallel``, so that methods and checkpoints meet the network itself.
    """
    own = [] if beside is None else list(beside.parameters())
    for parameter in own:
        if parameter.grad is None:  # not used in this process's batch, but maybe in another's
            parameter.grad = torch.zeros_like(parameter)
    for parameter in [*model.parameters(), *own]:
        if parameter.grad is not None:
            parameter.grad.copy_(reduce_tensor(parameter.grad.contiguous(), devices))
