"""What a training step costs with SAGE, and the mixing alone; the ratios are in brackets.

Run with ``tox -e benchmark``; skipped in the tests.
"""

import pytest
import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy

import harness.models  # noqa: F401
from harness.methods import METHODS
from harness.methods.base import MethodConfig
from sage_timm import best_translation, blend, random_translations

STEPS = {
    "none": ("none", MethodConfig()),
    "mixup": ("mixup", MethodConfig()),
    "cutmix": ("cutmix", MethodConfig()),
    "sage, ratio 1": ("sage", MethodConfig()),
    "sage, ratio 0.7": ("sage", MethodConfig(update_ratio=0.7)),
}


@pytest.mark.benchmark(group="step, preactresnet8_cifar, 100x3x32x32, channels last")
@pytest.mark.parametrize("name", STEPS)
def test_step(benchmark, name):
    torch.manual_seed(0)
    method, config = STEPS[name]
    model = timm.create_model("preactresnet8_cifar", num_classes=10)
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(100, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (100,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = SoftTargetCrossEntropy()
    mix = METHODS[method](config, model, loss_fn, 10)

    def step():
        mixed, soft_targets = mix(images, targets)
        loss = loss_fn(model(mixed), soft_targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    benchmark.pedantic(step, rounds=20, warmup_rounds=3)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", ["timm mixup", "sage, all", "sage, random 1 %", "sage, no search"])
def test_mixing_alone(benchmark, name, size):
    benchmark.group = f"mixing alone, 128x3x{size}x{size}, saliency given"
    torch.manual_seed(0)
    images = torch.randn(128, 3, size, size)
    targets = torch.randint(10, (128,))
    own, other = (torch.rand(128, 1, size, size) ** 4 for _ in range(2))
    mixup_fn = Mixup(num_classes=10)

    def by_timm():
        mixup_fn(images, targets)

    def by_sage():
        candidates = None
        if name == "sage, no search":
            candidates = torch.zeros(1, 2, dtype=torch.int64)
        elif name == "sage, random 1 %":
            candidates = random_translations(size, size, 0.01)
        blend(images, images.flip(0), own, other, best_translation(own, other, candidates))

    benchmark.pedantic(by_timm if name == "timm mixup" else by_sage, rounds=10, warmup_rounds=2)
