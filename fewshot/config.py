"""All settings of a few-shot run: the harness's, and what chooses the epoch."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import fewshot.backbones  # noqa: F401  (registers the networks with timm)
from fewshot.data import NAMES, open_split
from fewshot.episodes import EpisodeConfig
from harness.config import RunConfig
from harness.data import DATASETS, DataConfig, Source

PREFIX = "fewshot/"
"""What the harness calls these data sets begins with it: it has another glyphs, another folder."""

LearnerName = Literal["classifier", "protonet", "maml", "anil"]

_MIRRORED = 0.5


@dataclass(frozen=True)
class FewShotConfig(RunConfig):
    """All that decides one run's backbone, but for the machine."""

    learner: LearnerName = "classifier"
    validation: EpisodeConfig = field(default_factory=EpisodeConfig)
    """Episodes of the validation classes, by which the epoch is chosen."""

    PARTS: ClassVar[dict[str, type]] = {**RunConfig.PARTS, "validation": EpisodeConfig}

    def __post_init__(self) -> None:
        """Checks what can be checked before anything is loaded."""
        super().__post_init__()
        if not self.data.dataset.startswith(PREFIX):
            raise ValueError(f"dataset must begin with {PREFIX!r}, got {self.data.dataset!r}")

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
