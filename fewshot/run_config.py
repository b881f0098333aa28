"""Settings of one few-shot run: they decide its backbone, and name it."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import fewshot.backbones
import fewshot.data  # noqa: F401  (both register names)
from fewshot.config import ADAPTING, PREFIX, EpisodeConfig, LearnerName, TaskConfig
from harness.config import BatchNorm, DataConfig
from harness.methods import kind_of
from harness.run_config import RunConfig


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
        if kind_of(self.method) == "hidden":
            raise ValueError(
                f"{learner} does not go with {self.method}, which reaches all images of the "
                "network's next pass: a task's support must stay unmixed"
            )
        if self.schedule.bce_loss:
            raise ValueError(
                f"{learner} learns by the cross-entropy of a task's ways: leave out bce_loss"
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
