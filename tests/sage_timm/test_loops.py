"""What is promised of training loops and wrappers: docs/timm.md's table is made here."""

import contextlib
import copy
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sage_timm import SageMixup

PAGE = Path(__file__).parents[2] / "docs/timm.md"
LOSS = SoftTargetCrossEntropy()
BATCH = 6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 5)

    def forward_features(self, x):
        return torch.relu(self.norm(self.conv(x))).square().mean(dim=(2, 3))

    def forward(self, x):
        return self.head(self.forward_features(x))


def gradients(net, x, targets):
    """The loss's gradients, by a copy that SAGE has never seen."""
    net = copy.deepcopy(net)
    return torch.autograd.grad(LOSS(net(x), targets), list(net.parameters()))


class Training:
    """What a loop uses, and the gradients that its steps must have, by hand.

    Each step's is ``(1 - rho)`` times the clean gradient at the weights that mixed the batch and
    ``rho`` times the mixed one at the weights as they are.
    """

    def __init__(self, net, called, mixup_fn, update_ratio):
        self.net, self.called, self.mixup_fn, self.rho = net, called, mixup_fn, update_ratio
        self.weights = list(net.parameters())
        self.steps = 0
        self.results = []

    def mix(self, number=0):
        seed = 10 * self.steps + number
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(BATCH, 3, 8, 8, generator=generator)
        y = torch.randint(5, (BATCH,), generator=generator)
        np.random.seed(seed)
        mixed, targets = self.mixup_fn(x.clone(), y)
        self.clean = gradients(self.reference(), x, mixup_target(y, 5, 1.0, 0.1))
        self.mixed, self.targets = mixed, targets
        return mixed, targets

    def reference(self):
        reference = Net()
        with torch.no_grad():
            for own, weight in zip(reference.parameters(), self.weights, strict=True):
                own.copy_(getattr(weight, "full_tensor", lambda w=weight: w)())
        return reference

    def wanted(self):
        of_mixed = gradients(self.reference(), self.mixed, self.targets)
        return [
            (self.rho * m + (1 - self.rho) * c, m)
            for m, c in zip(of_mixed, self.clean, strict=True)
        ]

    def check(self, wanted=None, scale=1.0, got=None):
        wanted = self.wanted() if wanted is None else wanted
        got = [w.grad for w in self.weights] if got is None else got
        got = [getattr(g, "full_tensor", lambda g=g: g)() / scale for g in got]
        names = ("exact", "mixed only")
        for name, expected in zip(names, zip(*wanted, strict=True), strict=True):
            if all(torch.allclose(g, e, 1e-4, 1e-7) for g, e in zip(got, expected, strict=True)):
                self.results.append(name)
                return
        self.results.append("wrong")

    def end_of_step(self, optimizer=None):
        (optimizer or torch.optim.SGD(self.weights, 0.1)).step()
        for weight in self.weights:
            weight.grad = None
        self.steps += 1


def plain(t):
    mixed, targets = t.mix()
    LOSS(t.called(mixed), targets).backward()
    t.check()
    t.end_of_step()


def micro_batches(t):
    mixed, targets = t.mix()
    for x, y in zip(mixed.split(2), targets.split(2), strict=True):
        (LOSS(t.called(x), y) / 3).backward()
    t.check()
    t.end_of_step()


def shuffled_pieces(t):
    mixed, targets = t.mix()
    for rows in ([5, 0, 3], [1, 4, 2]):
        (LOSS(t.called(mixed[rows]), targets[rows]) / 2).backward()
    t.check()
    t.end_of_step()


def accumulation(t):
    total = [torch.zeros(())] * (2 * len(t.weights))
    for number in range(2):
        mixed, targets = t.mix(number)
        (LOSS(t.called(mixed), targets) / 2).backward()
        wanted = [gradient / 2 for pair in t.wanted() for gradient in pair]
        total = [a + b for a, b in zip(total, wanted, strict=True)]
    t.check(list(zip(total[::2], total[1::2], strict=True)))
    t.end_of_step()


def scaled_loss(t):
    mixed, targets = t.mix()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(LOSS(t.called(mixed), targets)).backward()
    t.check(scale=2.0**16)
    optimizer = torch.optim.SGD(t.weights, 0.1)
    scaler.unscale_(optimizer)
    t.end_of_step(optimizer)


def converted_copy(t):
    mixed, targets = t.mix()
    images = mixed.clone().contiguous(memory_format=torch.channels_last)
    LOSS(t.called(images), targets).backward()
    t.check()
    t.end_of_step()


def autograd_grad(t):
    mixed, targets = t.mix()
    t.check(got=torch.autograd.grad(LOSS(t.called(mixed), targets), t.weights))
    t.end_of_step()


def two_forward_passes(t):
    mixed, targets = t.mix()
    both = [LOSS(t.called(mixed), targets) for _ in range(2)]
    (sum(both) / 2).backward()
    t.check()
    t.end_of_step()


def sharpness_aware(t):
    mixed, targets = t.mix()
    LOSS(t.called(mixed), targets).backward()
    t.check()
    steps = [0.05 * w.grad for w in t.weights]
    with torch.no_grad():
        for weight, step in zip(t.weights, steps, strict=True):
            weight.add_(step)
            weight.grad = None
    LOSS(t.called(mixed), targets).backward()
    t.check()
    with torch.no_grad():
        for weight, step in zip(t.weights, steps, strict=True):
            weight.sub_(step)
    t.end_of_step()


def closure(t):
    mixed, targets = t.mix()
    optimizer = torch.optim.LBFGS(t.weights, lr=0.1, max_iter=3)

    def evaluate():
        optimizer.zero_grad()
        loss = LOSS(t.called(mixed), targets)
        loss.backward()
        t.check()
        return loss

    optimizer.step(evaluate)
    t.end_of_step()


def evaluation_between(t):
    mixed, targets = t.mix()
    others = torch.randn(BATCH, 3, 8, 8)
    torch.autograd.grad(t.called(others).sum(), t.weights)
    with torch.no_grad():
        t.called(mixed)
    LOSS(t.called(mixed), targets).backward()
    t.check()
    t.end_of_step()


def checkpointing(t):
    mixed, targets = t.mix()
    LOSS(checkpoint(t.called, mixed, use_reentrant=False), targets).backward()
    t.check()
    t.end_of_step()


def a_copy_beside(t):
    mixed, targets = t.mix()
    average = copy.deepcopy(t.net)
    LOSS(average(mixed), targets).backward()
    LOSS(t.called(mixed), targets).backward()
    t.check()
    t.end_of_step()


def another_loss(t):
    mixed, _ = t.mix()
    (t.called(mixed) * torch.linspace(-1, 1, 5)).square().sum().backward()
    net = t.reference()
    loss = (net(mixed) * torch.linspace(-1, 1, 5)).square().sum()
    alone = torch.autograd.grad(loss, list(net.parameters()))
    t.check([(m if t.rho == 1 else m + torch.nan, m) for m in alone])
    t.end_of_step()


def parts_of_the_model(t):
    mixed, targets = t.mix()
    LOSS(t.net.head(t.net.forward_features(mixed)), targets).backward()
    t.check()
    t.end_of_step()


LOOPS = {
    "one step": plain,
    "micro-batches of the mixed batch": micro_batches,
    "the same, shuffled": shuffled_pieces,
    "accumulation over mixed batches": accumulation,
    "`GradScaler`": scaled_loss,
    "images converted after mixing (memory format)": converted_copy,
    "`torch.autograd.grad`": autograd_grad,
    "two forward passes, one backward pass": two_forward_passes,
    "SAM: a second look at other weights": sharpness_aware,
    "LBFGS: a closure": closure,
    "an evaluation with gradients in between": evaluation_between,
    "activation checkpointing": checkpointing,
    "a copy of the model (EMA) sees the batch first": a_copy_beside,
    "a loss that is not the attached one": another_loss,
    "`forward_features` and the head by themselves": parts_of_the_model,
}


def compiled(net):
    return torch.compile(net, backend="aot_eager")


def sharded(net):
    return fully_shard(net, mesh=init_device_mesh("cpu", (1,)))


WRAPPERS = {  # how the called object is made of the net, and which of the two is attached
    "the module": (lambda net: net, "called"),
    "`torch.compile`": (compiled, "called"),
    "`torch.compile`, module attached": (compiled, "net"),
    "`DataParallel`": (nn.DataParallel, "called"),
    "`DistributedDataParallel`": (DistributedDataParallel, "called"),
    "FSDP2 (`fully_shard`)": (sharded, "called"),
}


def outcome(loop, wrap, attached, update_ratio):
    net = Net()
    called = wrap(net)
    mixup_fn = SageMixup(num_classes=5, update_ratio=update_ratio)
    try:
        mixup_fn.attach(net if attached == "net" else called, LOSS)
    except ValueError:
        return "refused"
    training = Training(net, called, mixup_fn, update_ratio)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            loop(training)
    (result,) = set(training.results)
    warned = any("had no effect on the last two" in str(w.message) for w in caught)
    assert warned == (result == "mixed only")
    return "warns" if warned else result


def cell(loop, wrap, attached):
    """What the table says: of rho = 1, and of rho < 1 where it differs."""
    try:
        net = Net()
        loop(Training(net, wrap(net), Mixup(num_classes=5), 1.0))
    except Exception:
        return "-"  # nor without SAGE
    one, below = (outcome(loop, wrap, attached, ratio) for ratio in (1.0, 0.6))
    return one if one == below else f"{one}; ρ < 1 {below}"


def table():
    """Makes the table of docs/timm.md."""
    lines = [["loop", *WRAPPERS], ["---"] * (len(WRAPPERS) + 1)]
    for name, loop in LOOPS.items():
        lines.append([name, *(cell(loop, *wrapper) for wrapper in WRAPPERS.values())])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@contextlib.contextmanager
def one_process(folder):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_table_of_the_page_is_what_the_loops_do(tmp_path):
    with one_process(tmp_path):
        made = table()
    assert "wrong" not in made
    assert made in PAGE.read_text(), f"docs/timm.md has another table than this:\n{made}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, one_process(folder):
        print(table())
