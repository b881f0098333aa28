"""Evaluation by adaptation, on images whose answer is known."""

import random

import pytest
import torch
from timm.data import create_loader
from torch import nn

from fewshot.adaptation import correct_after_adaptation
from fewshot.backbones import cnn4_32
from fewshot.episodes import EpisodeConfig, Episodes, draw_episodes
from fewshot.tasks import TaskConfig

from .conftest import Hues, TinyNet

TASKS = TaskConfig(ways=5, adaptation_steps=10, adaptation_lr=0.5)
LEARNERS = ["maml", "anil"]


class Noise(Hues):
    """Images that say nothing of their class."""

    def __init__(self):
        super().__init__(8, 30, 0, 256)
        random.Random(0).shuffle(self.targets)


def loader_of(dataset):
    return create_loader(
        dataset, (3, 16, 16), 32, mean=(0.5,) * 3, std=(0.5,) * 3, device=torch.device("cpu")
    )


def net():
    torch.manual_seed(0)
    return cnn4_32(num_classes=5, img_size=16)


@pytest.mark.parametrize("learner", LEARNERS)
def test_classes_that_are_plain_to_see_are_all_recognised(learner):
    data = Hues(5, 30, 0, noise=2, parts=5)
    episodes = draw_episodes(data.targets, EpisodeConfig(shots=2, queries=5, episodes=5))
    correct = correct_after_adaptation(net(), loader_of(data), episodes, learner, TASKS)
    assert correct.tolist() == [25] * 5


@pytest.mark.parametrize("learner", LEARNERS)
def test_noise_is_recognised_by_chance_alone(learner):
    data = Noise()
    episodes = draw_episodes(data.targets, EpisodeConfig(queries=10, episodes=20))
    correct = correct_after_adaptation(net(), loader_of(data), episodes, learner, TASKS)
    assert correct.shape == (20,)
    share = correct.double() / 50
    assert abs(share.mean() - 0.2) < 4 * share.std() / 20**0.5
    assert share.std() > 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("learner", LEARNERS)
def test_the_network_stays_as_it_is(learner, training):
    data, network = Noise(), net().train(training)
    network.features[0].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    episodes = draw_episodes(data.targets, EpisodeConfig(queries=2, episodes=3))
    one, other = (
        correct_after_adaptation(network, loader_of(data), episodes, learner, TASKS)
        for _ in range(2)
    )
    assert torch.equal(one, other)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("learner", LEARNERS)
def test_no_query_changes_what_is_adapted_to(learner):
    """Without batch norm, queries together are recognised just as each of them alone."""
    data = Hues(8, 30, 0, noise=256)
    torch.manual_seed(0)
    network = TinyNet(5)
    episodes = draw_episodes(data.targets, EpisodeConfig(queries=4, episodes=10))

    def counted(query):
        some = Episodes(episodes.support, query)
        return correct_after_adaptation(network, loader_of(data), some, learner, TASKS)

    alone = [counted(query) for query in episodes.query.split(1, dim=2)]
    assert torch.equal(counted(episodes.query), torch.stack(alone).sum(dim=0))
    assert 0 < torch.stack(alone).float().mean() < 5


@pytest.mark.parametrize("learner", LEARNERS)
def test_dropout_is_off_and_batch_norm_takes_the_statistics_of_the_batch(learner):
    data, plain = Hues(8, 30, 0, noise=256), net()
    dropping = net()
    dropping.features.append(nn.Dropout(0.5))
    ruined = net()
    for name, buffer in ruined.named_buffers():
        if "running" in name:
            buffer.fill_(1e6)
    episodes = draw_episodes(data.targets, EpisodeConfig(queries=4, episodes=5))
    counts = [
        correct_after_adaptation(network, loader_of(data), episodes, learner, TASKS)
        for network in (plain, dropping, ruined)
    ]
    assert torch.equal(counts[0], counts[1])
    assert torch.equal(counts[0], counts[2])


def test_a_network_that_has_diverged_is_told():
    data, network = Noise(), net()
    network.classifier.weight.data.fill_(torch.nan)
    episodes = draw_episodes(data.targets, EpisodeConfig(queries=2, episodes=2))
    with pytest.raises(ValueError, match="logits are not finite: anil has diverged"):
        correct_after_adaptation(network, loader_of(data), episodes, "anil", TASKS)
