"""Puts the few-shot data sets and networks where the harness looks for them."""

from functools import partial
from pathlib import Path
from typing import Any

import fewshot.backbones  # noqa: F401  (registers the networks with timm)
from fewshot.config import PREFIX
from fewshot.data import NAMES, open_split
from harness.config import DataConfig
from harness.data import DATASETS, Source

_MIRRORED = 0.5


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
