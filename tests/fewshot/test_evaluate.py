from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import binom

import fewshot.classifiers
from fewshot.classifiers import CLASSIFIERS, correct_queries
from fewshot.episodes import EpisodeConfig, draw_episodes
from fewshot.measure import NORMALIZATIONS, accuracy, normalized

ALL = pytest.mark.parametrize("name", list(CLASSIFIERS))


@ALL
@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_one_hot_embeddings_score_100_percent(name, shots, normalization):
    targets = torch.arange(8).repeat(20)
    base_mean = torch.full((8,), 0.3)
    embeddings = normalized(torch.eye(8)[targets], normalization, base_mean)
    episodes = draw_episodes(targets, EpisodeConfig(shots=shots, episodes=60))
    correct = correct_queries(embeddings, episodes, name)
    assert correct.tolist() == [75] * 60
    assert accuracy(correct, 75) == (100, 0)


@ALL
@pytest.mark.parametrize("shots", [1, 5])
def test_noise_scores_one_in_five(name, shots):
    # So many images that no class stands out by chance.
    targets = torch.arange(5).repeat(2000)
    embeddings = torch.randn(10_000, 8, generator=torch.Generator().manual_seed(0))
    episodes = draw_episodes(targets, EpisodeConfig(shots=shots, episodes=600))
    mean, half = accuracy(correct_queries(embeddings, episodes, name), 75)
    assert 0 < half < 1
    assert mean == pytest.approx(20, abs=4 / 1.96 * half)


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("name", ["centroid", "cosine"])
def test_the_accuracy_is_that_of_ten_lines_of_numpy(name, shots):
    targets = torch.arange(6).repeat(30)
    generator = torch.Generator().manual_seed(0)
    embeddings = 2 * torch.eye(6)[targets] + torch.randn(180, 6, generator=generator)
    episodes = draw_episodes(targets, EpisodeConfig(shots=shots, episodes=200))

    x = embeddings.double().numpy()
    right = []
    for support, query in zip(episodes.support.numpy(), episodes.query.numpy(), strict=True):
        means = x[support].mean(axis=1)
        scores = x[query] @ means.T
        if name == "cosine":
            scores /= np.linalg.norm(means, axis=1)
        else:
            scores -= (means**2).sum(axis=1) / 2
        right.append((scores.argmax(axis=2) == np.arange(5)[:, None]).mean())

    mean, half = accuracy(correct_queries(embeddings, episodes, name), 75)
    assert mean == pytest.approx(100 * np.mean(right))
    low, high = stats.t.interval(0.95, 199, scale=100 * stats.sem(right))
    assert half == pytest.approx((high - low) / 2)
    assert 30 < mean < 95


@pytest.mark.parametrize("name", ["svm", "logistic"])
def test_episodes_do_not_touch_each_other(name, monkeypatch):
    targets = torch.arange(6).repeat(30)
    embeddings = torch.eye(6)[targets] + torch.randn(
        180, 6, generator=torch.Generator().manual_seed(0)
    )
    episodes = draw_episodes(targets, EpisodeConfig(shots=2, episodes=40))
    together = correct_queries(embeddings, episodes, name)
    monkeypatch.setattr(fewshot.classifiers, "_CHUNK_BYTES", 1)
    assert torch.equal(together, correct_queries(embeddings, episodes, name))


def population(seed=0, classes=4, images=12):
    """Makes embeddings ``[classes, images, 2]`` of classes that overlap."""
    random = np.random.default_rng(seed)
    return random.normal(size=(classes, 1, 2)) + random.normal(size=(classes, images, 2))


def true_accuracy(x):
    """The expected accuracy in percent of two-way, one-shot episodes: all of them, by hand."""
    images = x.shape[1]
    right = []
    for first, second in combinations(range(len(x)), 2):
        for own, other in ((first, second), (second, first)):
            for shot in range(images):
                queries = np.delete(x[own], shot, axis=0)[:, None]
                far = ((queries - x[other]) ** 2).sum(axis=2)
                near = ((queries - x[own][shot]) ** 2).sum(axis=2)
                right.append((near < far).mean())
    return 100 * np.mean(right)


def test_the_interval_holds_the_truth_95_times_of_100():
    x = population()
    truth = true_accuracy(x)
    targets = np.arange(4).repeat(12)
    repetitions, each = 200, 50
    config = EpisodeConfig(ways=2, shots=1, queries=4, episodes=repetitions * each)
    episodes = draw_episodes(targets, config)
    own = correct_queries(torch.from_numpy(x.reshape(48, 2)), episodes, "centroid")
    held = 0
    for part in own.split(each):
        mean, half = accuracy(part, 8)
        held += abs(mean - truth) <= half
    low, high = binom.ppf([0.002, 0.998], repetitions, 0.95)
    assert low <= held <= high
    assert accuracy(own, 8)[0] == pytest.approx(truth, abs=2 * accuracy(own, 8)[1])


def test_the_normalisations():
    generator = torch.Generator().manual_seed(0)
    x, mean = torch.randn(9, 4, generator=generator), torch.randn(4, generator=generator)
    assert torch.equal(normalized(x, "un", mean), x)
    for name, centred in (("l2n", x), ("cl2n", x - mean)):
        expected = centred.double().numpy()
        expected /= np.sqrt((expected**2).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(normalized(x, name, mean), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(normalized(torch.zeros(2, 4), "l2n", mean), torch.zeros(2, 4))
    assert torch.equal(normalized(mean.expand(2, 4), "cl2n", mean), torch.zeros(2, 4))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**30), scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_moving_everything_leaves_cl2n(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    x, mean, shift = (torch.randn(*shape, **options) for shape in ((9, 4), (4,), (4,)))
    moved = normalized(x + scale * shift, "cl2n", mean + scale * shift)
    torch.testing.assert_close(moved, normalized(x, "cl2n", mean), rtol=1e-6, atol=1e-9)


def test_bad_input_is_refused():
    targets = torch.arange(5).repeat(4)
    episodes = draw_episodes(targets, EpisodeConfig(queries=2, episodes=2))
    embeddings = torch.eye(5)[targets]
    with pytest.raises(ValueError, match=r"classifier must be one of centroid, .* got 'knn'"):
        correct_queries(embeddings, episodes, "knn")
    embeddings[3, 2], embeddings[7, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="embeddings must be finite, 2 of 20 are not"):
        correct_queries(embeddings, episodes, "centroid")
    with pytest.raises(ValueError, match="normalization must be one of un, l2n, cl2n, got 'l2'"):
        normalized(embeddings, "l2", embeddings[0])
    with pytest.raises(ValueError, match="normalization='cl2n' needs base_mean"):
        normalized(embeddings, "cl2n")
    with pytest.raises(ValueError, match="at least two episodes, got 1"):
        accuracy(torch.tensor([3]), 10)
