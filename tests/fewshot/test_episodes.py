import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from fewshot.episodes import EpisodeConfig, draw_episodes

CLASSES, IMAGES = 8, 30
TARGETS = [index % CLASSES for index in range(CLASSES * IMAGES)]


def same(one, other):
    return torch.equal(one.support, other.support) and torch.equal(one.query, other.query)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_an_episode_has_distinct_classes_and_images_of_one_class_a_way(data):
    config = EpisodeConfig(
        ways=data.draw(st.integers(2, 5)),
        shots=data.draw(st.integers(1, 5)),
        queries=data.draw(st.integers(1, 5)),
        episodes=20,
        seed=data.draw(st.integers(0, 2**40)),
    )
    least = config.shots + config.queries
    sizes = data.draw(st.lists(st.integers(least, least + 4), min_size=config.ways, max_size=7))
    targets = data.draw(st.permutations([c for c, size in enumerate(sizes) for _ in range(size)]))
    episodes = draw_episodes(targets, config)
    assert episodes.support.shape == (20, config.ways, config.shots)
    assert episodes.query.shape == (20, config.ways, config.queries)
    for support, query in zip(episodes.support.tolist(), episodes.query.tolist(), strict=True):
        images = [own + other for own, other in zip(support, query, strict=True)]
        assert len({image for way in images for image in way}) == config.ways * least
        classes = [{targets[image] for image in way} for way in images]
        assert all(len(way) == 1 for way in classes)
        assert len(set.union(*classes)) == config.ways


def test_the_draw_depends_on_the_seed_alone_and_leaves_no_trace():
    config = EpisodeConfig(episodes=50, queries=5)
    episodes = draw_episodes(TARGETS, config)
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert same(episodes, draw_episodes(TARGETS, config))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
    other = draw_episodes(TARGETS, EpisodeConfig(episodes=50, queries=5, seed=1))
    assert not same(episodes, other)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_the_classes_numbers_do_not_matter(kind):
    config = EpisodeConfig(episodes=20, queries=5)
    numbers = random.Random(0).sample(range(1000), CLASSES)
    renamed = kind([numbers[target] for target in TARGETS])
    assert same(draw_episodes(TARGETS, config), draw_episodes(renamed, config))


def uniform(counts, drawn, times):
    """The p-value of ``times`` draws of ``drawn`` things without replacement being uniform."""
    counts = np.asarray(counts)
    share = drawn / len(counts)
    assert counts.sum() == drawn * times
    statistic = ((counts - times * share) ** 2).sum() / (times * share * (1 - share))
    return chi2.sf(statistic * (len(counts) - 1) / len(counts), len(counts) - 1)


def test_classes_and_images_are_drawn_equally_often():
    config = EpisodeConfig(ways=5, shots=2, queries=7, episodes=4000)
    episodes = draw_episodes(TARGETS, config)
    targets = torch.tensor(TARGETS)
    classes = targets[episodes.support[:, :, 0]]
    values = [uniform(torch.bincount(classes.flatten(), minlength=CLASSES), 5, 4000)]
    values += [
        uniform(torch.bincount(classes[:, way], minlength=CLASSES), 1, 4000) for way in range(5)
    ]
    for part, number in ((episodes.support, 2), (episodes.query, 7)):
        counts = Counter(part.flatten().tolist())
        for own in range(CLASSES):
            images = [image for image, target in enumerate(TARGETS) if target == own]
            times = int((classes == own).sum())
            values.append(uniform([counts[image] for image in images], number, times))
    assert min(values) > 0.001
    assert max(values) < 0.999


def test_too_few_classes_or_images():
    with pytest.raises(ValueError, match="ways=9 takes as many classes, the images have 8"):
        draw_episodes(TARGETS, EpisodeConfig(ways=9))
    few = [*TARGETS, *[77] * 17]
    with pytest.raises(ValueError, match=r"shots=5 and queries=15 take 20 .* class 77 has 17"):
        draw_episodes(few, EpisodeConfig(shots=5))
    draw_episodes(few, EpisodeConfig(shots=2, episodes=2))


@pytest.mark.parametrize(
    ("name", "value"),
    [("ways", 1), ("shots", 0), ("queries", 0), ("episodes", 1), ("seed", -1)],
)
def test_numbers_too_small(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least {value + 1}, got {value}"):
        EpisodeConfig(**{name: value}).check()
