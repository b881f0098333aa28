"""The loss, the optimiser and its schedule, and a step of it."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import harness.train
from harness.config import DataConfig, ScheduleConfig
from harness.learner import make_loss, make_optimizer, training_step
from harness.methods import METHODS
from harness.run_config import RunConfig
from harness.train import Validation

CPU = torch.device("cpu")
TINY = RunConfig(
    "none", seed=1, data=DataConfig(train_size=40, num_classes=4, image_size=8, batch_size=20)
)


def begun(**schedule):
    config = replace(TINY, schedule=ScheduleConfig(**schedule))
    return harness.train._Run(config, CPU, 0, harness.train.Classifier, Validation())


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_binary_cross_entropy_of_soft_targets(threshold):
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 7).double(), torch.rand(5, 7).double()
    wanted = targets if threshold is None else (targets > threshold).double()
    probability = 1 / (1 + (-logits).exp())
    each = -(wanted * probability.log() + (1 - wanted) * (1 - probability).log())
    loss = make_loss(ScheduleConfig(bce_loss=True, bce_target_thresh=threshold))
    torch.testing.assert_close(loss(logits, targets), each.mean())


def test_a_method_gets_the_loss_that_is_trained_with(monkeypatch):
    seen = []

    def build(training):
        seen.append(training.loss_fn)
        return METHODS["none"](training)

    monkeypatch.setitem(METHODS, "seen", build)
    config = replace(TINY, method="seen", schedule=ScheduleConfig(bce_loss=True))
    run = harness.train._Run(config, CPU, 0, harness.train.Classifier, Validation())
    assert seen == [run.learner.loss_fn]
    assert type(seen[0]).__name__ == "BinaryCrossEntropy"


def test_the_learning_rate_rises_and_falls_epoch_by_epoch():
    run = begun(epochs=10, lr=0.1, warmup_epochs=4, opt="adamw")
    rates = []
    for epoch in range(10):
        run.scheduler.step(epoch)
        rates.append(run.optimizer.param_groups[0]["lr"])
    rising = [1e-5 + (0.1 - 1e-5) * epoch / 4 for epoch in range(4)]
    falling = [0.05 * (1 + math.cos(math.pi * epoch / 10)) for epoch in range(4, 10)]
    assert rates == pytest.approx(rising + falling)


def test_deeper_layers_learn_slower_by_layer_decay():
    run = begun(epochs=10, lr=0.1, layer_decay=0.5)
    run.scheduler.step(0)
    of = {id(p): group["lr"] for group in run.optimizer.param_groups for p in group["params"]}
    rates = {name: of[id(p)] for name, p in run.model.named_parameters()}
    assert rates["head.fc.weight"] == pytest.approx(0.1)
    stages = [rates[f"stages.{stage}.blocks.0.conv1.weight"] for stage in range(3)]
    ratios = [a / b for a, b in zip([rates["stem.conv.weight"], *stages], stages, strict=False)]
    assert all(
        math.log2(1 / ratio) == pytest.approx(round(math.log2(1 / ratio))) for ratio in ratios
    )
    assert all(ratio < 1 for ratio in ratios)


@pytest.mark.parametrize("amp", [False, True])
def test_gradients_are_scaled_down_to_the_norm(amp):
    """Those of the loss, not of the loss times the scale of float16."""
    layer = nn.Linear(3, 2)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=amp)
    loss = 1000 * layer(torch.ones(4, 3)).square().sum()
    training_step(loss, optimizer, scaler, clip_grad=0.25)
    moved = [b - p.detach() for b, p in zip(before, layer.parameters(), strict=True)]
    gradients = [p.grad for p in layer.parameters()]
    assert torch.cat([m.flatten() for m in moved]).norm().item() == pytest.approx(0.25, rel=1e-4)
    for moved_by, gradient in zip(moved, gradients, strict=True):
        torch.testing.assert_close(moved_by, gradient, rtol=1e-4, atol=1e-6)


def test_adamw_decays_weights_and_not_biases():
    """By its formula, in float64: after one step, the direction is the gradient's sign."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    schedule = ScheduleConfig(opt="adamw", lr=0.01, weight_decay=0.1)
    optimizer = make_optimizer(layer, schedule)
    training_step(layer(torch.ones(4, 3).double()).square().sum(), optimizer)
    for name, value in layer.named_parameters():
        decay = 0.1 if name == "weight" else 0
        gradient = value.grad
        expected = before[name] * (1 - 0.01 * decay) - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(value.detach(), expected)


@pytest.mark.parametrize(
    ("opt", "text"),
    [("adahessian", "needs second derivatives"), ("fusedlamb", "cannot be had here: ")],
)
def test_an_optimiser_that_cannot_be_had_is_refused(opt, text):
    with pytest.raises(ValueError, match=f"opt='{opt}' {text}"):
        make_optimizer(nn.Linear(3, 2), ScheduleConfig(opt=opt))


def test_what_a_method_trains_decays_as_the_network_does():
    """timm keeps weight decay in its groups, and biases out of it."""
    model, beside = torch.nn.Linear(3, 2), torch.nn.Linear(4, 2)
    optimizer = harness.learner.make_optimizer(model, ScheduleConfig(weight_decay=0.3), beside)
    decays = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for module in (model, beside):
        assert decays[id(module.weight)] == 0.3
        assert decays[id(module.bias)] == 0
