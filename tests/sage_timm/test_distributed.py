"""SAGE in timm's task over two processes, beside one process that has the whole batch."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sage_timm import SageMixup, saliency
from sage_timm.timm_script.task import SageClassificationTask

RANKS = 2
CASES = [(1.0, 1), (1.0, 2), (0.6, 1), (0.6, 2)]  # update ratio, parts of a step


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, dtype=torch.float64),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5, dtype=torch.float64),
    )


def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 3, 12, 9, dtype=torch.float64, generator=generator)
    return x, torch.randint(5, (8,), generator=generator)


def make_task(update_ratio):
    task = SageClassificationTask(network(), SoftTargetCrossEntropy(), verbose=False)
    task.noted = Mixup(num_classes=5)
    task.options = {"update_ratio": update_ratio}
    return task


def train(task, parts):
    """One step, whose gradient is accumulated over the parts."""
    optimizer = torch.optim.SGD(task.parameters(), lr=0.5)
    for number, (x, y) in enumerate(parts):
        np.random.seed(number)
        if number < len(parts) - 1:
            with task.no_sync():
                (task(x, y)["loss"] / len(parts)).backward()
        else:
            (task(x, y)["loss"] / len(parts)).backward()
    optimizer.step()


def alone(update_ratio, parts):
    x, y = batch()
    task = make_task(update_ratio)
    # Each image with the partner that it has in its process: the batch is mixed with its reverse.
    order = torch.tensor([[0, 1, 4, 5, 6, 7, 2, 3], [0, 4, 6, 2, 1, 5, 7, 3]][parts - 1])
    train(task, list(zip(x[order].chunk(parts), y[order].chunk(parts), strict=True)))
    return task.state_dict()


def normalised():
    model = network()
    model.insert(1, nn.BatchNorm2d(8, dtype=torch.float64))
    return model


def sharded_step(rank):
    """A step of FSDP2 on this process's part of the batch; the weights after it, whole."""
    model = fully_shard(network(), mesh=init_device_mesh("cpu", (RANKS,)))
    loss_fn = SoftTargetCrossEntropy()
    with pytest.raises(ValueError, match=r"update_ratio=0\.6 does not work with FSDP"):
        SageMixup(num_classes=5, model=model, update_ratio=0.6)
    x, y = (values.chunk(RANKS)[rank] for values in batch())
    for settings in ({"prob": 0.5}, {"cutmix_alpha": 1.0}):
        with pytest.raises(ValueError, match="each draws for itself"):
            SageMixup(num_classes=5, model=model, **settings)(x, y)
    np.random.seed(0)
    mixed, targets = SageMixup(num_classes=5, model=model, loss_fn=loss_fn)(x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loss_fn(model(mixed), targets).backward()
    optimizer.step()
    return {name: value.full_tensor() for name, value in model.state_dict().items()}


def one_of_two(rank, folder):
    """All that is tested, in one process of two: to start them takes longer than the rest."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    for update_ratio, parts in CASES:
        x, y = (values.chunk(RANKS)[rank] for values in batch())
        order = torch.tensor([0, 1, 2, 3] if parts == 1 else [0, 2, 1, 3])
        task = make_task(update_ratio)
        task.prepare_distributed()
        train(task, list(zip(x[order].chunk(parts), y[order].chunk(parts), strict=True)))
        torch.save(task.state_dict(), folder / f"{update_ratio}-{parts}-{rank}.pt")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(normalised())
    if rank == 0:
        maps = saliency(model, *batch(), nn.functional.cross_entropy)
        torch.save(maps, folder / "maps.pt")
    assert not any("forward" in vars(module) for module in model.modules())
    torch.save(sharded_step(rank), folder / f"sharded-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(one_of_two, (path,), nprocs=RANKS)
    return path


@pytest.mark.parametrize(("update_ratio", "parts"), CASES)
def test_a_step_is_that_of_one_process_with_the_whole_batch(folder, update_ratio, parts):
    """Clean gradients are averaged once, also when the step's is accumulated without syncing."""
    one, other = (torch.load(folder / f"{update_ratio}-{parts}-{rank}.pt") for rank in range(RANKS))
    expected = alone(update_ratio, parts)
    assert len(one) == len(expected)
    for (name, value), wanted in zip(one.items(), expected.values(), strict=True):
        assert torch.equal(value, other[name])
        torch.testing.assert_close(value, wanted)


def test_a_saliency_pass_waits_for_no_other_process(folder):
    """The other may have drawn CutMix, and have no such pass: all would wait for ever."""
    expected = saliency(normalised(), *batch(), nn.functional.cross_entropy)
    assert torch.equal(torch.load(folder / "maps.pt"), expected)


def test_a_sharded_step_is_that_of_one_process_with_the_whole_batch(folder):
    expected = alone(1.0, 1)
    for rank in range(RANKS):
        got = torch.load(folder / f"sharded-{rank}.pt")
        assert len(got) == 4
        for name, value in got.items():
            torch.testing.assert_close(value, expected[f"trainable_module.{name}"])


@pytest.mark.parametrize("hide", [lambda m: nn.Sequential(m), lambda m: torch.compile(m)])
def test_a_wrapped_distributed_model_is_unwrapped_or_refused(tmp_path, hide):
    """Its forward pass would wait for the other processes, which may have drawn CutMix."""
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = hide(DistributedDataParallel(network()))
        if isinstance(model, nn.Sequential):
            with pytest.raises(ValueError, match="wraps a DistributedDataParallel"):
                SageMixup(num_classes=5, model=model)
        else:
            assert type(SageMixup(num_classes=5, model=model).sage.model) is nn.Sequential
    finally:
        dist.destroy_process_group()
