"""What the learners have in common that learn from tasks of a few classes."""

from collections.abc import Iterator

import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from fewshot.tasks import TaskBatches, TaskConfig, in_batches, way_labels
from harness.config import RunConfig
from harness.data import Splits, targets_of
from harness.loader import make_loader


def task_loader(
    config: RunConfig, tasks: TaskConfig, model: nn.Module, splits: Splits, device: torch.device
):
    """Makes a loader of tasks, whose images are augmented as the classifier's are.

    A batch holds the tasks of a step one after the other, each in the order of
    :func:`fewshot.tasks.in_order`.

    Raises:
        ValueError: If there are too few classes or images, or they are to be kept on the device.
    """
    if config.data.on_device:
        raise ValueError("on_device=True is for learner=classifier: tasks load their own images")
    loader = make_loader(
        config.data, splits.train, resolve_data_config({}, model=model), device, splits.hflip
    )
    return in_batches(loader, TaskBatches(targets_of(splits.train), tasks))


def split_tasks(images: Tensor, tasks: TaskConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Takes a batch of :func:`task_loader` apart: each task's support and query images."""
    support = tasks.ways * tasks.shots
    for task in images.split(support + tasks.ways * tasks.queries):
        yield task[:support], task[support:]


def support_labels(tasks: TaskConfig, device: torch.device) -> Tensor:
    """The ways of a task's support images."""
    return way_labels(tasks.ways, tasks.shots, device)


def query_labels(tasks: TaskConfig, device: torch.device) -> Tensor:
    """The ways of a task's query images."""
    return way_labels(tasks.ways, tasks.queries, device)
