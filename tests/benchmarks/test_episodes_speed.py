"""What 10,000 five-way episodes cost, the embeddings given.

Run with ``tox -e benchmark``; skipped in the tests. OMP_NUM_THREADS sets the threads.
"""

import pytest
import torch

from fewshot.classifiers import CLASSIFIERS, correct_queries
from fewshot.episodes import EpisodeConfig, draw_episodes
from fewshot.measure import NORMALIZATIONS, normalized

_TARGETS = torch.arange(20).repeat(150)


def _embeddings(size):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, size, generator=generator)
    return (centres[_TARGETS] + 2.5 * torch.randn(3000, size, generator=generator)).relu()


@pytest.mark.parametrize("shots", [1, 5])
def test_draw(benchmark, shots):
    benchmark.group = "drawing"
    benchmark.pedantic(draw_episodes, (_TARGETS, EpisodeConfig(shots=shots)), rounds=3)


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("size", [640, 1600])
@pytest.mark.parametrize("normalization", [n for n in NORMALIZATIONS if n != "l2n"])
@pytest.mark.parametrize("name", list(CLASSIFIERS))
def test_classifier(benchmark, name, normalization, size, shots):
    benchmark.group = f"{shots} shots, {size} numbers an image, {normalization}"
    embeddings = _embeddings(size)
    embeddings = normalized(embeddings, normalization, embeddings.mean(dim=0))
    episodes = draw_episodes(_TARGETS, EpisodeConfig(shots=shots))
    benchmark.pedantic(correct_queries, (embeddings, episodes, name), rounds=1)
