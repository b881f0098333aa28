"""Settings of a few-shot run: the harness's, of the tasks, of the episodes.

Nothing here imports torch at the top, for which --help would have to wait.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from harness.config import check_at_least, check_in

PREFIX = "fewshot/"
"""Begins these data sets' names in the harness, which has another glyphs and another folder."""

DatasetName = Literal["glyphs", "folder", "mini-imagenet", "tiered-imagenet", "cifarfs", "fc100"]
LearnerName = Literal["classifier", "protonet", "maml", "anil"]
ADAPTING = ("maml", "anil")
"""Learners whose network adapts to each task: it has an output a way."""
NORMALIZATIONS = ("un", "l2n", "cl2n")
"""Normalisations of embeddings before a classifier."""
CLASSIFIERS = ("centroid", "cosine", "logistic", "svm")
"""Classifiers of embeddings, in the order of tables."""


@dataclass(frozen=True)
class EpisodeConfig:
    """Size, number and seed of episodes."""

    ways: int = 5
    """Classes of an episode."""
    shots: int = 1
    """Support images of each class: the classifier learns from them."""
    queries: int = 15
    """Query images of each class: the classifier is tested on them."""
    episodes: int = 10_000
    """Number of episodes."""
    seed: int = 0
    """Seed of the draw."""

    def check(self, prefix: str = "") -> None:
        """Checks the numbers; ``prefix`` begins their names on the command line."""
        # One way leaves nothing to tell apart, one episode has no spread to make an interval of.
        for name, least in {"ways": 2, "shots": 1, "queries": 1, "episodes": 2, "seed": 0}.items():
            check_at_least(least, **{prefix + name: getattr(self, name)})


@dataclass(frozen=True)
class TaskConfig:
    """Tasks that protonet, maml and anil learn from."""

    ways: int = 5
    """Classes of a task; maml and anil are measured on as many."""
    shots: int = 1
    """Support images of each class."""
    queries: int = 16
    """Query images of each class: those that are mixed. Ways times queries must be even."""
    tasks: int = 4
    """Tasks in a step of the optimiser, whose losses are averaged."""
    steps: int = 100
    """Steps of the optimiser in an epoch."""
    adaptation_steps: int = 5
    """maml, anil: gradient steps on a task's support, in training and in evaluation."""
    adaptation_lr: float = 0.1
    """maml, anil: their learning rate."""

    def check(self) -> None:
        """Checks the numbers."""
        for name in ("ways", "shots", "queries", "tasks", "steps", "adaptation_steps"):
            least = 2 if name == "ways" else 1
            check_at_least(least, **{f"tasks.{name}": getattr(self, name)})
        check_in("(0, inf)", **{"tasks.adaptation_lr": self.adaptation_lr})
        if self.ways * self.queries % 2:
            raise ValueError(
                "tasks.ways times tasks.queries must be even, since timm's Mixup mixes pairs of "
                f"queries, got {self.ways} times {self.queries}"
            )


@dataclass(frozen=True)
class EvaluationConfig:
    """Episodes of the novel classes, and the classifiers to measure them with."""

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
    adaptation_episodes: int = 600
    """maml, anil: measure the network's own adaptation too, on the first so many of the episodes
    (600 in MAML's paper); it is far slower than classifiers of embeddings."""
    normalizations: tuple[str, ...] = ("cl2n",)
    """Of embeddings (SimpleShot): un, as they are; l2n, to unit length; cl2n, centred on the base
    classes' mean first."""
    classifiers: tuple[str, ...] = CLASSIFIERS
    """Nearest centroid, by Euclidean distance or by cosine; linear SVM; logistic regression."""

    def check(self) -> None:
        """Checks the names and the numbers."""
        for name, known in (("normalizations", NORMALIZATIONS), ("classifiers", CLASSIFIERS)):
            unknown = [value for value in getattr(self, name) if value not in known]
            if unknown or not getattr(self, name):
                raise ValueError(f"{name} must be of {', '.join(known)}, got {unknown}")
        if not self.shots:
            raise ValueError("shots must name at least one number, got none")
        check_at_least(0, episode_seed=self.episode_seed)
        check_at_least(2, adaptation_episodes=self.adaptation_episodes)
        for setting in self.settings():
            setting.check()

    def settings(self) -> list[EpisodeConfig]:
        """Gives the episodes' settings for each number of shots."""
        return [
            EpisodeConfig(self.ways, shots, self.queries, self.episodes, self.episode_seed)
            for shots in self.shots
        ]

    def figures(self, learner: str) -> Iterator[tuple[EpisodeConfig, str, str]]:
        """Gives the episodes, normalisation and classifier of each figure of a network."""
        for setting in self.settings():
            for normalization in self.normalizations:
                for classifier in self.classifiers:
                    yield setting, normalization, classifier
            if learner in ADAPTING:
                first = min(self.episodes, self.adaptation_episodes)
                yield replace(setting, episodes=first), "un", learner
