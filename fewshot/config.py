"""Settings of a few-shot run: the harness's, of the tasks, of the episodes.

Nothing here imports torch at the top, for which --help would have to wait.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from harness.config import BatchNorm, DataConfig, RunConfig, check_at_least, check_in

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


@dataclass(frozen=True)
class FewShotConfig(RunConfig):
    """Settings that decide one run's backbone, but for the machine."""

    batch_norm: BatchNorm = "running"  # adaptation to a task's support uses those of training
    learner: LearnerName = "classifier"
    tasks: TaskConfig = field(default_factory=TaskConfig)
    validation: EpisodeConfig = field(default_factory=EpisodeConfig)  # choose the epoch

    PARTS: ClassVar[dict[str, type]] = {
        **RunConfig.PARTS,
        "tasks": TaskConfig,
        "validation": EpisodeConfig,
    }

    def __post_init__(self) -> None:
        """Checks what can be checked before anything is loaded."""
        import fewshot.backbones
        import fewshot.data  # noqa: F401  (both register names)

        super().__post_init__()
        self.tasks.check()
        self.validation.check("validation.")
        if not self.data.dataset.startswith(PREFIX):
            raise ValueError(f"dataset must begin with {PREFIX!r}, got {self.data.dataset!r}")
        if self.learner != "classifier":
            self._check_learner()
        self.check_ways(self.validation.ways, "validation.ways")

    def check_ways(self, ways: int, name: str = "ways") -> None:
        """Checks that episodes have as many ways as a network that adapts has outputs."""
        if self.learner in ADAPTING and ways != self.tasks.ways:
            raise ValueError(
                f"learner={self.learner!r} has an output for each of tasks.ways="
                f"{self.tasks.ways}: {name} must be the same, got {ways}"
            )

    @property
    def least_images(self) -> int:
        """The number of training images that an epoch takes at least; tasks check their own."""
        return super().least_images if self.learner == "classifier" else 1

    def identity(self) -> dict[str, Any]:
        """Gives the settings as JSON; those of tasks only where the learner reads them."""
        identity = super().identity()
        if self.learner == "classifier":
            del identity["tasks"]
        return identity

    @classmethod
    def from_identity(
        cls, identity: dict[str, Any], data_dir: str | None = None
    ) -> "FewShotConfig":
        """Makes the settings of a run from the ``config`` of its line in ``results.jsonl``."""
        made = super().from_identity({"tasks": {}} | identity, data_dir)
        assert isinstance(made, cls)
        return made

    def outputs(self, classes: int) -> int:
        """Returns the number of the network's outputs, once it is trained on so many classes."""
        return self.tasks.ways if self.learner in ADAPTING else classes

    @property
    def novel(self) -> DataConfig:
        """The data settings with the novel classes in the place of both splits."""
        return replace(self.data, train_split="test", val_split="test", train_size=None)

    def _check_learner(self) -> None:
        """Checks that the method and the other settings fit a learner of tasks."""
        learner, is_sage = f"learner={self.learner!r}", self.method.startswith("sage")
        shares = ""  # names what uses the saliency pass's parameter gradient
        if is_sage and self.mixing.update_ratio < 1:
            shares = f"{self.method} with update_ratio={self.mixing.update_ratio}"
        elif self.method == "comixup":
            shares = self.method
        if self.method == "manifold":
            raise ValueError(
                f"{learner} does not go with manifold, which mixes all images of the network's "
                "next pass: a task's support must stay unmixed"
            )
        if self.compile:
            raise ValueError(
                f"{learner} does not go with compile=True: it passes images through the network's "
                "parts or copies, not through the pass that is compiled"
            )
        if self.learner == "protonet":
            if shares and self.tasks.tasks > 1:
                raise ValueError(
                    f"{shares} adds the clean loss's gradient to that of the next pass: with "
                    f"{learner} set tasks.tasks=1, got {self.tasks.tasks}"
                )
            if is_sage and self.mixing.saliency_size:
                raise ValueError(
                    f"{learner} takes queries of the support's size alone: leave out "
                    f"saliency_size={self.mixing.saliency_size}"
                )
            return
        if shares:
            raise ValueError(
                f"{shares} needs the clean loss's gradient at the parameters, which {learner} "
                "would have to take through the adaptation: use another method, or sage with "
                "update_ratio=1"
            )
        if self.amp == "float16":
            raise ValueError(
                f"{learner} adapts with gradients that nothing scales, which vanish with "
                "amp='float16': use bfloat16 or none"
            )
