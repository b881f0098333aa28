"""A call that the model cannot notice: its step is that of a copy that SAGE has never seen."""

import copy
import logging
import random
from collections import deque
from typing import ClassVar

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from sage_timm import SageMixup, saliency
from sage_timm.model_state import as_before
from sage_timm.saliency import saliency_pass


class GrowsATable(nn.Module):
    """As rotary embeddings do: how far the table is filled is an attribute, the table a buffer."""

    def __init__(self):
        super().__init__()
        self.filled = 0
        self.register_buffer("table", torch.zeros(64, 1), persistent=False)
        self.register_buffer("cached", None)

    def forward(self, x):
        rows = x.shape[2]
        if rows > self.filled:
            self.table[:rows] = torch.arange(1.0, rows + 1)[:, None]
            self.filled = rows
        if self.cached is None:
            self.register_buffer("new", torch.ones(1))
            self.cached = self.table[:rows].clone()
        return x * self.table[:rows] * self.cached * self.new


class Neuron(nn.Module):
    """Keeps its potential from call to call, in an attribute with a graph."""

    def __init__(self):
        super().__init__()
        self.potential = torch.zeros(1)
        self.decay = torch.tensor([0.5])

    def forward(self, x):
        self.potential = self.decay * self.potential.detach().mean() + x
        self.decay.mul_(0.9)
        return self.potential


class Counts(nn.Module):
    """In plain attributes, containers, arrays, generators and an object of one's own."""

    total: ClassVar = deque([0], maxlen=3)

    class Cache:
        __slots__ = ("entries", "hits")

        def __init__(self):
            self.entries, self.hits = {}, 0

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.sums = []
        self.nested = {"steps": [[0.0]], "kinds": {1}}
        self.array = np.zeros(2)
        self.generator = torch.Generator().manual_seed(0)
        self.python = random.Random(0)
        self.numpy = np.random.default_rng(0)
        self.cache = self.Cache()

    def forward(self, x):
        self.calls += 1
        self.sums.append(x.sum())
        self.nested["steps"][0][0] += 1
        self.nested["kinds"].add(len(self.sums))
        self.array += 1
        self.total.append(self.total[-1] + 1)
        self.cache.entries[self.calls] = x
        self.cache.hits += 1
        drawn = torch.rand(1, generator=self.generator) + self.python.random() + self.numpy.random()
        seen = self.calls + self.array.sum() + self.total[-1] + len(self.cache.entries)
        seen += self.nested["steps"][0][0] + len(self.nested["kinds"]) + self.cache.hits
        return x * (drawn + seen)


class Codebook(nn.Module):
    """Moves a parameter that is not trained, and swaps the memory of one that is."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.ones(1), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        with torch.no_grad():
            self.codes.mul_(0.5)
            self.scale.data = self.scale.data * 0.5 + 1
        return x * self.codes * self.scale


class Drops(nn.Module):
    """From all streams of random numbers that are global."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.3) * (1 + random.random() + np.random.rand())


class InPlace(nn.Module):
    def forward(self, x):
        return x.sub_(0.5).div_(0.25)


class SpectralNorm(nn.Sequential):
    def __init__(self):
        super().__init__(nn.utils.spectral_norm(nn.Conv2d(3, 3, 1)))


class BuildsItself(nn.Module):
    """Adds a layer, and changes flags, at its first call."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        if not hasattr(self, "layer"):
            self.layer = nn.Conv2d(3, 3, 1).to(x)
            self.drop.eval()
        return self.drop(self.layer(x))


KINDS = [
    *(GrowsATable, Neuron, Counts, Codebook, Drops, InPlace, SpectralNorm, BuildsItself),
]


def seed_all():
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    Counts.total.clear()
    Counts.total.append(0)


def steps(model, x, y, before):
    """Three steps of a loop: the logits and gradients of each."""
    seed_all()
    seen = []
    for _ in range(3):
        before(model, x)
        logits = model(x.clone())
        model.zero_grad()
        cross_entropy(logits, y).backward()
        gradients = (p.grad.clone() for p in model.parameters() if p.grad is not None)
        seen += [logits.detach(), *gradients]
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("parameters", [True, False])
def test_the_steps_are_those_of_an_untouched_copy(small_net, batch, kind, training, parameters):
    torch.manual_seed(0)
    model = nn.Sequential(kind(), small_net()).train(training)
    untouched = copy.deepcopy(model)
    x, y = batch()

    def mixing(model, x):
        saliency_pass(model, x, y, cross_entropy, parameters=parameters)

    got = steps(model, x.clone(), y, mixing)
    expected = steps(untouched, x, y, lambda _model, _x: None)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_that_raises_is_undone_as_well(small_net, batch, kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(), small_net())
    untouched = copy.deepcopy(model)
    x, y = batch()

    def mixing(model, x):
        with pytest.raises(ValueError, match="must return logits"):
            saliency(model, x, torch.zeros(6, 7), cross_entropy)

    got = steps(model, x.clone(), y, mixing)
    expected = steps(untouched, x, y, lambda _model, _x: None)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


collected_globally = []


def test_losses_that_hooks_collect_are_those_of_the_step(small_net, batch):
    """Else their backward pass would go through the saliency's graph, which is gone."""
    model, (x, y) = small_net(), batch()
    in_closure, count = [], 0

    class Collector:
        def __init__(self):
            self.outputs = {}

        def hook(self, module, _inputs, output):
            self.outputs[module] = output

    def counting(_module, _inputs, output):
        nonlocal count
        count += 1
        in_closure.append(output.square().mean())

    collector = Collector()
    model.conv.register_forward_hook(counting)
    model.conv.register_forward_hook(
        lambda _m, _i, output: collected_globally.append(output.mean())
    )
    model.norm.register_forward_hook(collector.hook)
    collected_globally.clear()
    mixed, targets = SageMixup(num_classes=5, model=model)(x, y)
    assert (in_closure, count, collected_globally, collector.outputs) == ([], 0, [], {})
    loss = SoftTargetCrossEntropy()(model(mixed), targets)
    (loss + sum(in_closure + collected_globally) + collector.outputs[model.norm].mean()).backward()
    assert count == 1


def test_random_numbers_go_on_as_without_the_pass(small_net, batch):
    """So that a comparison with Mixup, seed by seed, sees one stream of dropout."""
    model = nn.Sequential(Drops(), small_net())
    x, y = batch()
    drawn = []
    for mixing in (SageMixup(num_classes=5, model=model), Mixup(num_classes=5)):
        seed_all()
        mixing(x.clone(), y)
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert drawn[0] == drawn[1]


def test_a_written_parameter_is_refused_by_name(small_net, batch):
    class Clamps(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

        def forward(self, x):
            with torch.no_grad():
                self.gain.clamp_(0, 1)
            return x * self.gain

    model = nn.Sequential(Clamps(), small_net())
    with pytest.raises(ValueError, match=r"writes to its parameter '0\.gain', .* make it a buffer"):
        SageMixup(num_classes=5, model=model)(*batch())


def test_a_lazy_model_is_refused(batch):
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(ValueError, match=r"lazy parameters .* run the model on one batch"):
        SageMixup(num_classes=5, model=model)(*batch())
    assert isinstance(model[1].weight, nn.UninitializedParameter)


def test_a_grad_that_the_pass_sets_is_taken_away(small_net, batch):
    class Accumulates(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            (self.weight * 2).backward()
            return x * self.weight

    model = nn.Sequential(Accumulates(), small_net())
    SageMixup(num_classes=5, model=model)(*batch())
    assert model[0].weight.grad is None


@pytest.mark.parametrize("step", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("own", [torch.float16, torch.bfloat16])
def test_autocasts_copies_of_the_weights_are_the_steps(small_net, batch, step, own):
    """Autocast keeps its casts until the outermost block ends, whatever their type."""
    model, (x, y) = small_net(), batch()
    mixup_fn = SageMixup(num_classes=5, model=model, saliency_dtype=own)
    with torch.autocast("cpu", step):
        model(x)  # casts of the caller's own, which the pass must not take
        mixed, _ = mixup_fn(x.clone(), y)
        logits = model(mixed)
    with torch.autocast("cpu", step):
        expected = copy.deepcopy(small_net())(mixed)
    assert logits.dtype == step
    assert torch.equal(logits, expected)


def test_weights_that_parametrize_has_cached_are_the_steps(small_net, batch):
    """Those of the saliency pass have a graph that is gone."""
    model, (x, y) = small_net(), batch()
    nn.utils.parametrizations.weight_norm(model.conv)
    untouched = copy.deepcopy(model)
    with nn.utils.parametrize.cached():
        first = model(x)
        mixed, targets = SageMixup(num_classes=5, model=model, update_ratio=0.999999)(x, y)
        (SoftTargetCrossEntropy()(model(mixed), targets) + first.sum()).backward()
    (SoftTargetCrossEntropy()(untouched(mixed), targets) + untouched(x).sum()).backward()
    for parameter, wanted in zip(model.parameters(), untouched.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, wanted.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_a_scripted_model_is_left_as_it_was(small_net, batch, training):
    model = torch.jit.script(small_net().train(training))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    versions = [buffer._version for buffer in model.buffers()]
    SageMixup(num_classes=5, model=model)(*batch())
    assert model.training is training
    assert [buffer._version for buffer in model.buffers()] == versions
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


class _Data(Dataset):
    pass


@pytest.mark.parametrize("make", [lambda: logging.getLogger("a test's own"), _Data])
def test_what_is_no_part_of_the_model_is_left_alone(make):
    """A module may refer to a logger or a data set, whose records are none of its own."""
    model = nn.Identity()
    model.other = make()
    with as_before(model):
        model.other.kept = 1
        model.kept = 1
    assert model.other.kept == 1
    assert not hasattr(model, "kept")


def test_what_was_not_changed_is_the_same_object(small_net):
    model = nn.Sequential(Counts(), GrowsATable(), small_net())
    attributes = [dict(vars(module)) for module in model.modules()]
    buffers = list(model.buffers())
    with as_before(model):
        model(torch.randn(2, 3, 8, 8))
    for module, before in zip(model.modules(), attributes, strict=True):
        assert vars(module).keys() == before.keys()
        assert all(vars(module)[name] is value for name, value in before.items())
    assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))
