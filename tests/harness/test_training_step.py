import sys
from contextlib import nullcontext

import pytest
import torch
from timm.utils import random_seed

from harness.config import ScheduleConfig
from harness.measures.training_step import SaliencyClock, TrainingStep, peak_memory
from harness.methods import METHODS
from harness.methods.base import MethodConfig
from sage_timm import sage
from sage_timm.gradient import input_gradient

CPU = torch.device("cpu")


class Ticks:
    """A clock that stands still until somebody moves it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def make_step(method="none"):
    settings = {"classes": 5, "mixing": MethodConfig(), "channels_last": False, "device": CPU}
    return TrainingStep(method, "preactresnet8_cifar", 4, 8, **settings)


class TestSaliencyClock:
    def test_splits_sages_call_in_two(self, monkeypatch, batch):
        """The gradient moves the clock by 5, the search by 2, the blend by 1."""
        clock = Ticks()
        step = make_step("sage")
        gradient = moving(clock, 5, input_gradient)
        monkeypatch.setattr(sys.modules["sage_timm.saliency"], "input_gradient", gradient)
        for name, ticks in (("best_translation", 2), ("blend", 1)):
            monkeypatch.setattr(sage, name, moving(clock, ticks, getattr(sage, name)))
        watch = SaliencyClock(clock)
        with watch.watching():
            for _ in range(3):
                step.mix(*step.batch())
        assert (watch.saliency(), watch.rest(), clock.now) == (15, 9, 24)
        step.mix(*step.batch())
        assert watch.saliency() == 15

    def test_leaves_the_mix_as_it_is(self):
        results = []
        for watching in (SaliencyClock(Ticks()).watching(), nullcontext()):
            step = make_step("sage")
            random_seed(3)
            with watching:
                results.append(step.mix(*step.batch()))
        for watched, plain in zip(*results, strict=True):
            assert torch.equal(watched, plain)


def moving(clock, ticks, function):
    def moved(*args, **kwargs):
        clock.now += ticks
        return function(*args, **kwargs)

    return moved


class TestStep:
    @pytest.mark.parametrize("method", ["none", "cutmix", "sage"])
    def test_trains_the_network(self, method):
        step = make_step(method)
        before = {name: value.clone() for name, value in step.model.state_dict().items()}
        step(*step.batch())
        for name, value in step.model.named_parameters():
            assert not torch.equal(value, before[name]), name

    def test_is_one_step_of_nesterov_momentum(self):
        """By hand, in which the momentum's first value is the gradient."""
        step, schedule = make_step(), ScheduleConfig()
        images, targets = step.batch()
        loss = torch.nn.functional.cross_entropy(step.model(images), targets)
        weights = dict(step.model.named_parameters())
        gradients = torch.autograd.grad(loss, weights.values())
        expected = {}
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            decayed = gradient + schedule.weight_decay * weight.detach() * (weight.dim() > 1)
            expected[name] = weight.detach() - schedule.lr * (1 + schedule.momentum) * decayed
        step(images, targets)
        for name, weight in step.model.named_parameters():
            torch.testing.assert_close(weight.detach(), expected[name], atol=1e-6, rtol=1e-5)

    def test_a_batch_is_not_changed_by_a_method_that_mixes_in_place(self):
        step = make_step("mixup")
        before = step.batch()[0]
        step(*step.batch())
        assert torch.equal(step.batch()[0], before)


class TestPeakMemory:
    """Against bytes that a method holds on purpose."""

    HELD = 2**25

    def hoard(self, monkeypatch, during_step):
        def build(config, model, loss_fn, classes):
            held = []

            def mix(images, targets):
                held[:] = [torch.empty(self.HELD, dtype=torch.uint8)]
                if not during_step:
                    held.clear()
                return images, torch.eye(classes)[targets]

            return mix

        monkeypatch.setitem(METHODS, "hoard", build)

    def peak(self, method):
        return peak_memory(lambda: make_step(method), CPU)

    def test_counts_what_is_held_during_the_step(self, monkeypatch):
        self.hoard(monkeypatch, during_step=True)
        # The second call allocates before it lets go of the first one's.
        assert self.HELD < self.peak("hoard") - self.peak("none") <= 2 * self.HELD

    def test_counts_what_is_held_for_a_moment(self, monkeypatch):
        """Before the forward pass, there are weights, momentum, gradients and images, no more."""
        self.hoard(monkeypatch, during_step=False)
        step = make_step()
        weights = sum(p.numel() * 4 for p in step.model.parameters())
        images = step.images.numel() * 4
        own = self.peak("hoard") - self.HELD
        assert 3 * weights + 2 * images <= own <= 3 * weights + 2 * images + 50_000

    def test_is_the_same_again(self):
        assert self.peak("sage") == self.peak("sage")
