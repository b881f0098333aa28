"""What is measured of a backbone: episodes of the validation classes, then of the novel ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import nn

from fewshot.classifiers import CLASSIFIERS
from fewshot.config import FewShotConfig
from fewshot.data import ClassSplit
from fewshot.embed import embed
from fewshot.episodes import EpisodeConfig, Episodes, draw_episodes
from fewshot.evaluate import NORMALIZATIONS, accuracy, correct_queries, normalized
from harness.data import fingerprint, load_splits, make_loader
from harness.device import device_name
from harness.episode_counts import pack
from harness.results import append_result, read_results
from harness.train import load_model

_IDENTITY = (
    *("config", "ways", "shots", "queries", "episodes", "episode_seed"),
    *("normalization", "classifier", "data"),
)


@dataclass(frozen=True)
class EvaluationConfig:
    """Which episodes of the novel classes to measure, and with which classifiers."""

    ways: int = 5
    """Classes of an episode."""
    shots: tuple[int, ...] = (1, 5)
    """Support images of a class."""
    queries: int = 15
    """Query images of a class."""
    episodes: int = 10_000
    """Number of episodes, for each number of shots."""
    episode_seed: int = 0
    """Draws the episodes: the same ones for all methods."""
    normalizations: tuple[str, ...] = ("cl2n",)
    """Of embeddings (SimpleShot): un, as they are; l2n, to unit length; cl2n, centred on the base
    classes' mean first."""
    classifiers: tuple[str, ...] = tuple(CLASSIFIERS)
    """Nearest centroid, by Euclidean distance or by cosine; linear SVM; logistic regression."""

    def __post_init__(self) -> None:
        """Checks the names and the numbers."""
        for name, known in (("normalizations", NORMALIZATIONS), ("classifiers", CLASSIFIERS)):
            unknown = [value for value in getattr(self, name) if value not in known]
            if unknown or not getattr(self, name):
                raise ValueError(f"{name} must be of {', '.join(known)}, got {unknown}")
        if not self.shots:
            raise ValueError("shots must name at least one number, got none")
        self.settings()

    def settings(self) -> list[EpisodeConfig]:
        """The episodes' settings, for each number of shots."""
        return [
            EpisodeConfig(self.ways, shots, self.queries, self.episodes, self.episode_seed)
            for shots in self.shots
        ]


class ValidationEpisodes:
    """Measures nearest centroids on episodes, as the training loop measures an epoch.

    Embeddings are scaled to unit length. Called with a model and a loader, it gives ``top1``: the
    mean accuracy over the episodes, in percent.

    Args:
        targets: The class of each of the loader's images.
        config: The episodes.

    Raises:
        ValueError: If there are too few classes or images for them.
    """

    def __init__(self, targets: list[int], config: EpisodeConfig) -> None:
        self.episodes = draw_episodes(targets, config)
        self.total = config.ways * config.queries

    def __call__(self, model: nn.Module, loader: Any) -> dict[str, float]:
        """Embeds the loader's images and measures the episodes."""
        embeddings = embed(model, loader, "validation classes")
        embeddings = normalized(embeddings, "l2n", torch.zeros_like(embeddings[0]))
        correct = correct_queries(embeddings, self.episodes, "centroid")
        return {"top1": accuracy(correct, self.total)[0]}


def check_episodes(config: FewShotConfig, evaluation: EvaluationConfig) -> None:
    """Draws all episodes once, so that a long training does not end with an error.

    Raises:
        ValueError: If the data set cannot be opened, or has too few images for the episodes.
    """
    validation, novel = _targets(config, "validation"), _targets(config, "test")
    draw_episodes(validation, config.validation)
    for setting in evaluation.settings():
        _draw(novel, setting)


def evaluate(
    config: FewShotConfig, evaluation: EvaluationConfig, out: Path, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Measures a trained backbone on the novel classes, without training it.

    Args:
        config: The run, whose checkpoint is in ``out``.
        evaluation: What to measure.
        out: The folder; a line a figure is appended to its ``episodes.jsonl``.
        device: Where.

    Yields:
        Each figure's line. One that stands there already is not measured again.

    Raises:
        ValueError: If there is no checkpoint, or the novel classes have too few images.
    """
    path = out / "episodes.jsonl"
    known = {_key(line): line for line in read_results(path)}
    header = {
        "method": config.method,
        "seed": config.seed,
        "config": config.identity(),
        "data": fingerprint(config.novel),
    }
    embeddings: Embeddings | None = None
    for setting in evaluation.settings():
        for normalization in evaluation.normalizations:
            for classifier in evaluation.classifiers:
                line = header | _described(setting, normalization, classifier)
                if _key(line) in known:
                    yield known[_key(line)]
                    continue
                embeddings = embeddings or Embeddings(config, out, device)
                line |= _measured(embeddings, setting, normalization, classifier)
                line |= {
                    "device": device_name(device),
                    "torch": torch.__version__,
                    "learn2learn": version("learn2learn"),
                }
                append_result(path, line)
                yield line


class Embeddings:
    """What a run's backbone makes of the novel images, and of the base images on the mean."""

    def __init__(self, config: FewShotConfig, out: Path, device: torch.device) -> None:
        splits = load_splits(config.data, config.seed)
        self.model = load_model(config, out, len(splits.classes), device)
        model_config = resolve_data_config({}, model=self.model)
        novel = load_splits(config.novel, config.seed).validation
        base = make_loader(config.data, splits.train, model_config, device, hflip=None)
        loader = make_loader(config.data, novel, model_config, device, hflip=None)
        self.targets = tuple(novel.targets)
        self.base_mean = embed(self.model, base, "base classes").mean(dim=0)
        self.novel = embed(self.model, loader, "novel classes")


def _measured(
    embeddings: Embeddings, setting: EpisodeConfig, normalization: str, classifier: str
) -> dict[str, Any]:
    correct = correct_queries(
        normalized(embeddings.novel, normalization, embeddings.base_mean),
        _draw(embeddings.targets, setting),
        classifier,
        f"{setting.shots}-shot {classifier}",
    )
    mean, interval = accuracy(correct, setting.ways * setting.queries)
    return {"accuracy": mean, "interval": interval, "correct": pack(correct.numpy())}


def _described(setting: EpisodeConfig, normalization: str, classifier: str) -> dict[str, Any]:
    return {
        "ways": setting.ways,
        "shots": setting.shots,
        "queries": setting.queries,
        "episodes": setting.episodes,
        "episode_seed": setting.seed,
        "normalization": normalization,
        "classifier": classifier,
    }


def _key(line: dict[str, Any]) -> str:
    return repr([line[name] for name in _IDENTITY])


def _targets(config: FewShotConfig, split: str) -> tuple[int, ...]:
    source = load_splits(config.novel if split == "test" else config.data, config.seed)
    validation: ClassSplit = source.validation
    return tuple(validation.targets)


@lru_cache(maxsize=8)
def _draw(targets: tuple[int, ...], setting: EpisodeConfig) -> Episodes:
    return draw_episodes(targets, setting)
