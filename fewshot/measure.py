"""Accuracy of a backbone on episodes: of the validation classes, then of the novel ones."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from torch import Tensor, nn
from tqdm import tqdm

from fewshot.adaptation import correct_after_adaptation
from fewshot.classifiers import correct_queries
from fewshot.config import ADAPTING, NORMALIZATIONS, EpisodeConfig, EvaluationConfig
from fewshot.episodes import Episodes, check_counts, draw_episodes
from fewshot.run_config import FewShotConfig
from fewshot.tasks import TaskBatches
from harness.data import fingerprint, load_splits, targets_of
from harness.device import device_name
from harness.figures import half_width, markdown_table
from harness.loader import make_loader
from harness.store import cached
from harness.train import load_model


@torch.inference_mode()
def embed(model: nn.Module, loader: Any, title: str = "embeddings") -> Tensor:
    """Computes what comes before the classifier, ``[N, D]`` in float32, of a loader's images.

    Leaves the model, one of timm's or of ``fewshot.backbones``, in evaluation mode.
    """
    model.eval()
    parts = [
        model.forward_head(model.forward_features(images), pre_logits=True).float()
        for images, _ in tqdm(loader, desc=title, leave=False, disable=None)
    ]
    return torch.cat(parts)


def normalized(embeddings: Tensor, normalization: str, base_mean: Tensor | None = None) -> Tensor:
    """Normalises embeddings ``[N, D]`` (Wang et al., SimpleShot, arXiv 1911.04623).

    ``un`` leaves them as they are; ``l2n`` scales each to unit length, but for zeros; ``cl2n``
    first subtracts ``base_mean``, the mean embedding of the base classes' images, ``[D]``.

    Raises:
        ValueError: If there is no such normalisation, or it lacks the mean.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}"
        )
    if normalization == "un":
        return embeddings
    if normalization == "cl2n":
        if base_mean is None:
            raise ValueError(
                "normalization='cl2n' needs base_mean, the base images' mean embedding"
            )
        embeddings = embeddings - base_mean
    return F.normalize(embeddings, dim=1)


def accuracy(correct: Tensor, total: int) -> tuple[float, float]:
    """Gives the mean accuracy in percent, and half of its 95 % interval over episodes, in points.

    ``correct`` are the correct queries of each episode, ``[E]``, out of ``total``.
    """
    if len(correct) < 2:
        raise ValueError(f"an interval takes at least two episodes, got {len(correct)}")
    shares = 100 * correct.double() / total
    error = shares.std().item() / math.sqrt(len(shares))
    return shares.mean().item(), half_width(error, len(shares))


def epoch_measure(
    config: FewShotConfig, targets: list[int]
) -> Callable[[nn.Module, Any], dict[str, float]]:
    """Makes the function that measures an epoch's network on images of these classes.

    It gives ``top1``, the mean accuracy over episodes in percent: of nearest centroids of
    embeddings of unit length, or after adaptation, if that is what the network learns.
    """
    episodes = draw_episodes(targets, config.validation)

    def measure(model: nn.Module, loader: Any) -> dict[str, float]:
        if config.learner in ADAPTING:
            correct = correct_after_adaptation(
                model, loader, episodes, config.learner, config.tasks, "validation episodes"
            )
        else:
            embeddings = normalized(embed(model, loader, "validation classes"), "l2n")
            correct = correct_queries(embeddings, episodes, "centroid")
        return {"top1": accuracy(correct, config.validation.ways * config.validation.queries)[0]}

    return measure


def check_episodes(config: FewShotConfig, evaluation: EvaluationConfig) -> None:
    """Checks that all episodes can be drawn, so that a long training does not end with an error."""
    evaluation.check()
    config.check_ways(evaluation.ways)
    splits = load_splits(config.data, config.seed)
    novel = load_splits(config.novel, config.seed).validation
    if config.learner != "classifier":
        TaskBatches(targets_of(splits.train), config.tasks)
    drawn = [("validation", splits.validation, config.validation)]
    drawn += [("test", novel, setting) for setting in evaluation.settings()]
    for name, split, setting in drawn:
        where = f"split {name!r} of {config.data.data_dir}"
        check_counts(split.targets, setting, split.classes, where)


def evaluate(
    config: FewShotConfig, evaluation: EvaluationConfig, out: Path, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Measures a run's network, from its checkpoint in ``out``, on the novel classes.

    Yields each figure's line of ``out/episodes.jsonl``; one that is there is not measured again.
    """
    evaluation.check()
    config.check_ways(evaluation.ways)
    backbone: _TrainedBackbone | None = None

    def measure(*figure: Any) -> dict[str, Any]:
        nonlocal backbone
        backbone = backbone or _TrainedBackbone(config, out, device)
        return backbone.measured(*figure)

    header = {
        "method": config.method,
        "seed": config.seed,
        "config": config.identity(),
        "data": fingerprint(config.novel),
    }
    for setting, normalization, classifier in evaluation.figures(config.learner):
        key = header | asdict(setting) | {"episode_seed": setting.seed, "seed": config.seed}
        key |= {"normalization": normalization, "classifier": classifier}
        figure = partial(measure, setting, normalization, classifier)
        yield cached(out / "episodes.jsonl", key, figure)


class _TrainedBackbone:
    """Measures the network that a run has trained."""

    def __init__(self, config: FewShotConfig, out: Path, device: torch.device) -> None:
        splits = load_splits(config.data, config.seed)
        novel = load_splits(config.novel, config.seed).validation
        self.tasks, self.device, self.targets = config.tasks, device, tuple(novel.targets)
        self.model = load_model(config, out, config.outputs(len(splits.classes)), device)
        normalisation = resolve_data_config({}, model=self.model)
        self.base = make_loader(config.data, splits.train, normalisation, device, hflip=None)
        self.novel = make_loader(config.data, novel, normalisation, device, hflip=None)

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
                self.model, self.novel, episodes, classifier, self.tasks, title
            )
        else:
            mean = self.base_mean if normalization == "cl2n" else None
            embeddings = normalized(self.embeddings, normalization, mean)
            correct = correct_queries(embeddings, episodes, classifier, title)
        mean, interval = accuracy(correct, setting.ways * setting.queries)
        return {
            "accuracy": mean,
            "interval": interval,
            "device": device_name(self.device),
            "torch": torch.__version__,
            "learn2learn": version("learn2learn"),
        }


@lru_cache(maxsize=8)
def _draw(targets: tuple[int, ...], setting: EpisodeConfig) -> Episodes:
    return draw_episodes(targets, setting)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Makes a Markdown table of lines of ``episodes.jsonl``: methods down, classifiers across.

    With several seeds a cell is their mean and standard deviation, with one the accuracy and its
    95 % interval over episodes.
    """
    figures = defaultdict(list)
    for line in lines:
        column = f"{line['shots']}-shot {line['classifier']} {line['normalization']}"
        figures[line["method"], column].append(line)
    methods, columns = (dict.fromkeys(part) for part in zip(*figures, strict=True))
    rows = [[m, *(_cell(figures.get((m, column), [])) for column in columns)] for m in methods]
    return markdown_table(["method", *columns], rows)


def _cell(lines: list[dict[str, Any]]) -> str:
    if not lines:
        return ""
    accuracies = [line["accuracy"] for line in lines]
    spread = stdev(accuracies) if len(lines) > 1 else lines[0]["interval"]
    return f"{fmean(accuracies):.2f} ± {spread:.2f}"
