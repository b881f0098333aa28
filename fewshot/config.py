"""All settings of a few-shot run: the harness's, what it learns from, what chooses the epoch."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import fewshot.backbones  # noqa: F401  (registers the networks with timm)
from fewshot.data import NAMES, open_split
from fewshot.episodes import EpisodeConfig
from fewshot.tasks import TaskConfig
from harness.config import BatchNorm, RunConfig
from harness.data import DATASETS, DataConfig, Source

PREFIX = "fewshot/"
"""What the harness calls these data sets begins with it: it has another glyphs, another folder."""

LearnerName = Literal["classifier", "protonet", "maml", "anil"]
ADAPTING = ("maml", "anil")
"""The learners whose network adapts to each task: it has an output a way."""

_MIRRORED = 0.5


@dataclass(frozen=True)
class FewShotConfig(RunConfig):
    """All that decides one run's backbone, but for the machine."""

    batch_norm: BatchNorm = "running"
    """Adaptation to a task's support uses the statistics of training."""
    learner: LearnerName = "classifier"
    tasks: TaskConfig = field(default_factory=TaskConfig)
    """What all learners but the classifier learn from."""
    validation: EpisodeConfig = field(default_factory=EpisodeConfig)
    """Episodes of the validation classes, by which the epoch is chosen."""

    PARTS: ClassVar[dict[str, type]] = {
        **RunConfig.PARTS,
        "tasks": TaskConfig,
        "validation": EpisodeConfig,
    }

    def __post_init__(self) -> None:
        """Checks what can be checked before anything is loaded."""
        super().__post_init__()
        if not self.data.dataset.startswith(PREFIX):
            raise ValueError(f"dataset must begin with {PREFIX!r}, got {self.data.dataset!r}")
        if self.learner != "classifier":
            self._check_tasks()
        if self.learner in ADAPTING:
            self._check_adaptation()

    def identity(self) -> dict[str, Any]:
        """The settings as JSON; those of tasks only where the learner reads them."""
        identity = super().identity()
        if self.learner == "classifier":
            del identity["tasks"]
        return identity

    @classmethod
    def from_identity(
        cls, identity: dict[str, Any], data_dir: str | None = None
    ) -> "FewShotConfig":
        """Makes the settings of a run from the ``config`` of its line in ``results.jsonl``.

        Raises:
            ValueError: If a setting is unknown here, or does not fit.
        """
        made = super().from_identity({"tasks": {}} | identity, data_dir)
        assert isinstance(made, cls)
        return made

    def outputs(self, classes: int) -> int:
        """Returns how many outputs the network has once it is trained on so many classes."""
        return self.tasks.ways if self.learner in ADAPTING else classes

    def _check_tasks(self) -> None:
        if self.method == "manifold":
            raise ValueError(
                f"learner={self.learner!r} does not go with manifold, which mixes all images of "
                "the network's next pass: a task's support must stay unmixed"
            )
        if self.compile:
            raise ValueError(
                f"learner={self.learner!r} does not go with compile=True: it passes images through "
                "the network's parts or copies, not through the pass that is compiled"
            )
        if self.learner == "protonet" and self._shares_gradients() and self.tasks.tasks > 1:
            raise ValueError(
                f"{self._shares_gradients()} adds the clean loss's gradient to that of the next "
                f"pass: with learner='protonet' set tasks.tasks=1, got {self.tasks.tasks}"
            )
        if self.learner == "protonet" and self._is_sage() and self.mixing.saliency_size:
            raise ValueError(
                "learner='protonet' takes queries of the support's size alone: leave out "
                f"saliency_size={self.mixing.saliency_size}"
            )

    def _check_adaptation(self) -> None:
        if self._shares_gradients():
            raise ValueError(
                f"{self._shares_gradients()} needs the clean loss's gradient at the parameters, "
                f"which learner={self.learner!r} would have to take through the adaptation: "
                "use another method, or sage with update_ratio=1"
            )
        if self.amp == "float16":
            raise ValueError(
                f"learner={self.learner!r} adapts with gradients that nothing scales, which "
                "vanish with amp='float16': use bfloat16 or none"
            )
        if self.validation.ways != self.tasks.ways:
            raise ValueError(
                f"learner={self.learner!r} has an output for each of tasks.ways="
                f"{self.tasks.ways}: validation.ways must be the same, got {self.validation.ways}"
            )

    def _is_sage(self) -> bool:
        return self.method.startswith("sage")

    def _shares_gradients(self) -> str:
        """Names what of the method uses the saliency pass's parameter gradient, if anything."""
        if self.method == "comixup":
            return "comixup"
        shared = self._is_sage() and self.mixing.update_ratio < 1
        return f"{self.method} with update_ratio={self.mixing.update_ratio}" if shared else ""

    @property
    def novel(self) -> DataConfig:
        """The data settings with the novel classes in the place of both splits."""
        return replace(self.data, train_split="test", val_split="test", train_size=None)


def _open(name: str, config: DataConfig, split: str) -> Any:
    return open_split(
        name,
        Path(config.data_dir or "~/data").expanduser(),
        split,
        download=config.dataset_download,
        image_size=config.image_size,
    )


for _name in NAMES:
    _hflip = 0.0 if _name == "glyphs" else _MIRRORED  # characters are not the same in a mirror
    DATASETS[PREFIX + _name] = Source(partial(_open, _name), _hflip)
