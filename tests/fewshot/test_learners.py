"""Each learner's loss and its gradient, against formulas written out here."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch.func import functional_call

from fewshot.adaptation import adapt
from fewshot.backbones import cnn4_32, resnet12
from fewshot.tasks import TaskConfig
from harness.methods import METHODS, kind_of
from harness.methods.base import MethodConfig

WAYS, SHOTS, QUERIES = 3, 2, 4  # as in conftest
SUPPORT = torch.arange(WAYS).repeat_interleave(SHOTS)
QUERY = torch.arange(WAYS).repeat_interleave(QUERIES)
UNREAD = torch.zeros(2 * WAYS * (SHOTS + QUERIES), dtype=torch.int64)


def step(seed=1, tasks=2, size=16, dtype=torch.float64):
    """The images of a step: each task's support, then its queries."""
    generator = torch.Generator().manual_seed(seed)
    count = tasks * WAYS * (SHOTS + QUERIES)
    return torch.randn(count, 3, size, size, generator=generator, dtype=dtype)


def tasks_of(images):
    return [task.split((len(SUPPORT), len(QUERY))) for task in images.split(18)]


def gradients(model, loss):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [g for g in found if g is not None]


def prototypical_loss(model, support, queries, soft):
    """Snell et al., Eq. 2 and the mean over queries, in NumPy."""
    embed = [model.forward_features(x).detach().numpy() for x in (support, queries)]
    means = np.stack([embed[0][SUPPORT.numpy() == way].mean(axis=0) for way in range(WAYS)])
    logits = -((embed[1][:, None] - means[None]) ** 2).sum(axis=2)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -(soft.numpy() * log_p).sum(axis=1).mean()


def adapted_by_hand(model, names, support, lr, steps):
    """Algorithm 1 of Finn et al., over the parameters of these names."""
    parameters = dict(model.named_parameters())
    for _ in range(steps):
        loss = F.cross_entropy(functional_call(model, parameters, support), SUPPORT)
        slopes = torch.autograd.grad(loss, [parameters[name] for name in names], create_graph=True)
        for name, slope in zip(names, slopes, strict=True):
            parameters[name] = parameters[name] - lr * slope
    return parameters


def adaptation_loss(model, learner, task, soft, lr=0.1, steps=3):
    names = [n for n, _ in model.named_parameters() if learner == "maml" or "head" in n]
    parameters = adapted_by_hand(model, names, task[0], lr, steps)
    return F.cross_entropy(functional_call(model, parameters, task[1]), soft)


def test_protonet_loss_is_that_of_the_paper(tiny_net, make_learner):
    images = step()
    loss = make_learner(tiny_net, "protonet").loss(images, UNREAD)
    soft = F.one_hot(QUERY).double()
    expected = [prototypical_loss(tiny_net, *task, soft) for task in tasks_of(images)]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.parametrize("learner", ["maml", "anil"])
def test_adaptation_loss_and_meta_gradient_are_those_of_the_paper(tiny_net, make_learner, learner):
    images = step()
    loss = make_learner(tiny_net, learner).loss(images, UNREAD)
    losses = [adaptation_loss(tiny_net, learner, task, QUERY) for task in tasks_of(images)]
    expected = sum(losses) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for own, by_hand in zip(gradients(tiny_net, loss), gradients(tiny_net, expected), strict=True):
        assert torch.allclose(own, by_hand, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("learner", ["protonet", "maml", "anil"])
def test_the_gradient_is_the_loss_slope(tiny_net, make_learner, learner):
    """By finite differences along a random direction: no derivative is left out."""
    images, small = step(), 1e-5
    built = make_learner(tiny_net, learner, adaptation_lr=1.0)
    loss = built.loss(images, UNREAD)
    slopes = torch.autograd.grad(loss, list(tiny_net.parameters()), allow_unused=True)
    directions = [torch.randn_like(parameter) for parameter in tiny_net.parameters()]
    slope = sum((g * d).sum() for g, d in zip(slopes, directions, strict=True) if g is not None)
    ends = []
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, direction in zip(tiny_net.parameters(), directions, strict=True):
                parameter.add_(sign * small * direction)
        ends.append(built.loss(images, UNREAD).item())
    assert (ends[0] - ends[1]) / (2 * small) == pytest.approx(slope.item(), rel=1e-5)


@pytest.mark.parametrize("learner", ["protonet", "maml", "anil"])
def test_mixup_mixes_each_task_s_queries_as_timm_does(tiny_net, make_learner, learner):
    images = step()
    built = make_learner(tiny_net, learner, "mixup", MethodConfig(label_smoothing=0.1))
    np.random.seed(5)
    loss = built.loss(images.clone(), UNREAD)
    np.random.seed(5)
    timms = Mixup(mixup_alpha=1.0, label_smoothing=0.1, num_classes=WAYS)
    expected = []
    for support, queries in tasks_of(images):
        mixed, soft = timms(queries.clone(), QUERY)
        assert not torch.equal(mixed, queries)
        task = (support, mixed)
        if learner == "protonet":
            expected.append(prototypical_loss(tiny_net, *task, soft))
        else:
            expected.append(adaptation_loss(tiny_net, learner, task, soft.double()).item())
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-6)  # timm's targets are float32


def recorded(built):
    """Notes what a learner's method gives."""
    mix, notes = built.mix, []

    def noting(images, labels):
        notes.append(mix(images, labels))
        return notes[-1]

    built.mix = noting
    return notes


def traces(model):
    return [
        *(value.clone() for value in model.state_dict().values()),
        *(module.training for module in model.modules()),
        *(len(module._forward_hooks) for module in model.modules()),
        *(parameter.grad is None for parameter in model.parameters()),
    ]


def same(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("method", ["sage", "sage-eval-saliency", "puzzlemix", "saliencymix"])
@pytest.mark.parametrize("learner", ["protonet", "maml", "anil"])
def test_saliency_leaves_no_trace(make_learner, learner, method):
    """The same mixed queries without the saliency pass give the same loss, gradient and network."""
    networks, losses, notes = [], [], []
    for name in (method, "none"):
        torch.manual_seed(2)
        np.random.seed(2)
        networks.append(cnn4_32(num_classes=6, img_size=16).train())
        built = make_learner(networks[-1], learner, name)
        if name == "none":
            given = iter(notes)
            built.mix = lambda _images, _labels, given=given: next(given)
        else:
            notes = recorded(built)
        losses.append(built.loss(step(dtype=torch.float32), UNREAD))
    assert len(notes) == 2
    assert not torch.equal(notes[0][0], tasks_of(step(dtype=torch.float32))[0][1])
    assert losses[0] == losses[1]
    assert same(*(gradients(n, loss) for n, loss in zip(networks, losses, strict=True)))
    assert same(*(traces(network) for network in networks))


@pytest.mark.parametrize("learner", ["maml", "anil"])
def test_saliency_is_that_of_the_adapted_network(tiny_net, make_learner, learner):
    built = make_learner(tiny_net, learner, "sage")
    images, seen = step(tasks=1), []
    mix = built.mix
    built.mix = lambda *batch: (seen.append(built.adapted_copy(batch[0])), mix(*batch))[1]
    built.loss(images, UNREAD)
    names = [n for n, _ in tiny_net.named_parameters() if learner == "maml" or "head" in n]
    support, queries = tasks_of(images)[0]
    by_hand = adapted_by_hand(tiny_net, names, support, 0.1, 3)
    assert torch.allclose(seen[0], functional_call(tiny_net, by_hand, queries), rtol=1e-12)


@pytest.mark.parametrize(
    ("method", "mixing", "ratio"),
    [("sage", MethodConfig(update_ratio=0.6), 0.6), ("comixup", MethodConfig(), 0.5)],
)
def test_protonet_shares_the_clean_gradient(tiny_net, make_learner, method, mixing, ratio):
    images = step(tasks=1)
    clean = gradients(tiny_net, make_learner(tiny_net, "protonet").loss(images, UNREAD))
    built = make_learner(tiny_net, "protonet", method, mixing, tasks=1)
    notes = recorded(built)
    built.loss(images, UNREAD).backward()
    shared = [p.grad for p in tiny_net.body.parameters()]
    plain = make_learner(tiny_net, "protonet")
    plain.mix = lambda _images, _labels: notes[0]
    mixed = gradients(tiny_net, plain.loss(images, UNREAD))
    for own, *parts in zip(shared, clean, mixed, strict=True):
        assert torch.allclose(own, (1 - ratio) * parts[0] + ratio * parts[1], rtol=1e-5)


def test_a_cloned_backbone_counts_and_normalises_in_the_network_s_own_buffers():
    """learn2learn's clones share buffers; DropBlock counts the passes of training in one."""
    torch.manual_seed(0)
    network = resnet12(num_classes=2).train()
    network.reset_classifier(2)
    tasks = TaskConfig(ways=2, shots=1, adaptation_steps=1)
    images = torch.randn(2, 3, 84, 84)
    adapted = adapt("maml", network, images, torch.arange(2), tasks)
    adapted(images).sum().backward()
    counts = [b for name, b in network.named_buffers() if name.endswith("num_batches_tracked")]
    assert len(counts) > 12
    assert all(count == 2 for count in counts)
    before, after = (dict(n.named_parameters()) for n in (network, adapted))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"classifier.weight", "features.layer1.0.conv1.weight"} <= changed
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("learner", ["protonet", "maml", "anil"])
def test_all_methods_but_those_refused_mix_the_queries_alone(make_learner, learner):
    for method in METHODS:
        if kind_of(method) == "hidden" or method == "comixup":
            continue
        torch.manual_seed(0)
        np.random.seed(0)
        built = make_learner(cnn4_32(num_classes=6, img_size=16).train(), learner, method)
        notes = recorded(built)
        images = step(dtype=torch.float32)
        assert built.loss(images, UNREAD).isfinite(), method
        assert [len(mixed) for mixed, _ in notes] == [12, 12], method
        for _, soft in notes:
            assert torch.allclose(soft.sum(dim=1), torch.ones(12), atol=1e-5), method
        supports = [task[0] for task in tasks_of(images)]
        given = [task[0] for task in tasks_of(step(dtype=torch.float32))]
        assert same(supports, given), method
