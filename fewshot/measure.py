"""What is measured of a backbone: episodes of the validation classes, then of the novel ones."""

from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from fewshot.adaptation import AdaptationEpisodes, correct_after_adaptation
from fewshot.config import ADAPTING, EpisodeConfig, EvaluationConfig, FewShotConfig
from fewshot.embed import embed
from fewshot.episodes import Episodes, check_counts, draw_episodes
from fewshot.evaluate import accuracy, correct_queries, normalized
from fewshot.tasks import TaskBatches
from harness.data import fingerprint, load_splits, targets_of
from harness.device import device_name
from harness.loader import make_loader
from harness.store import RUN, append_result, read_results
from harness.train import load_model

_IDENTITY = (
    *("config", "ways", "shots", "queries", "episodes", "episode_seed"),
    *("normalization", "classifier", "data"),
)


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
        embeddings = normalized(embeddings, "l2n")
        correct = correct_queries(embeddings, self.episodes, "centroid")
        return {"top1": accuracy(correct, self.total)[0]}


def epoch_measure(
    config: FewShotConfig, targets: list[int]
) -> Callable[[nn.Module, Any], dict[str, float]]:
    """Makes what measures an epoch's network: by its adaptation, if that is what it learns.

    Args:
        config: The run.
        targets: The class of each validation image.
    """
    if config.learner in ADAPTING:
        return AdaptationEpisodes(targets, config.validation, config.learner, config.tasks)
    return ValidationEpisodes(targets, config.validation)


def check_episodes(config: FewShotConfig, evaluation: EvaluationConfig) -> None:
    """Draws all episodes once, so that a long training does not end with an error.

    Raises:
        ValueError: If the data set cannot be opened, or has too few images for the episodes, or
            they have other ways than the network has outputs.
    """
    evaluation.check()
    _check_ways(config, evaluation)
    splits = load_splits(config.data, config.seed)
    novel = load_splits(config.novel, config.seed).validation
    if config.learner != "classifier":
        TaskBatches(targets_of(splits.train), config.tasks)
    place, validation = f"of {config.data.data_dir}", splits.validation
    where = f"split 'validation' {place}"
    check_counts(validation.targets, config.validation, validation.classes, where)
    for setting in evaluation.settings():
        check_counts(novel.targets, setting, novel.classes, f"split 'test' {place}")
        _draw(tuple(novel.targets), setting)


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
        ValueError: If there is no checkpoint, the novel classes have too few images, or the
            episodes other ways than a network that adapts has outputs.
    """
    evaluation.check()
    _check_ways(config, evaluation)
    path = out / "episodes.jsonl"
    known = {_key(line): line for line in read_results(path, RUN)}
    header = {
        "method": config.method,
        "seed": config.seed,
        "config": config.identity(),
        "data": fingerprint(config.novel),
    }
    backbone: TrainedBackbone | None = None
    for setting, normalization, classifier in evaluation.figures(config.learner):
        line = header | _described(setting, normalization, classifier)
        if _key(line) in known:
            yield known[_key(line)]
            continue
        backbone = backbone or TrainedBackbone(config, out, device)
        line |= backbone.measured(setting, normalization, classifier)
        line |= {
            "device": device_name(device),
            "torch": torch.__version__,
            "learn2learn": version("learn2learn"),
        }
        append_result(path, line)
        yield line


class TrainedBackbone:
    """What a run has trained, and the images to measure it on."""

    def __init__(self, config: FewShotConfig, out: Path, device: torch.device) -> None:
        splits = load_splits(config.data, config.seed)
        self.config = config
        self.model = load_model(config, out, config.outputs(len(splits.classes)), device)
        model_config = resolve_data_config({}, model=self.model)
        novel = load_splits(config.novel, config.seed).validation
        self.base = make_loader(config.data, splits.train, model_config, device, hflip=None)
        self.novel = make_loader(config.data, novel, model_config, device, hflip=None)
        self.targets = tuple(novel.targets)

    @cached_property
    def base_mean(self) -> Tensor:
        """The mean embedding of the base images, ``[D]``; they are many."""
        return embed(self.model, self.base, "base classes").mean(dim=0)

    @cached_property
    def embeddings(self) -> Tensor:
        """The embeddings of the novel images, ``[N, D]``."""
        return embed(self.model, self.novel, "novel classes")

    def measured(
        self, setting: EpisodeConfig, normalization: str, classifier: str
    ) -> dict[str, Any]:
        """Measures one figure."""
        episodes = _draw(self.targets, setting)
        title = f"{setting.shots}-shot {classifier}"
        if classifier in ADAPTING:
            correct = correct_after_adaptation(
                self.model, self.novel, episodes, classifier, self.config.tasks, title
            )
        else:
            mean = self.base_mean if normalization == "cl2n" else None
            embeddings = normalized(self.embeddings, normalization, mean)
            correct = correct_queries(embeddings, episodes, classifier, title)
        mean, interval = accuracy(correct, setting.ways * setting.queries)
        return {"accuracy": mean, "interval": interval}


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


def _check_ways(config: FewShotConfig, evaluation: EvaluationConfig) -> None:
    if config.learner in ADAPTING and evaluation.ways != config.tasks.ways:
        raise ValueError(
            f"learner={config.learner!r} has an output for each of tasks.ways="
            f"{config.tasks.ways}: ways must be the same, got {evaluation.ways}"
        )


def _key(line: dict[str, Any]) -> str:
    return repr([line[name] for name in _IDENTITY])


@lru_cache(maxsize=8)
def _draw(targets: tuple[int, ...], setting: EpisodeConfig) -> Episodes:
    return draw_episodes(targets, setting)
