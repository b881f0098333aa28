from pathlib import Path

import pytest

from fewshot.commands.train import FewShot
from fewshot.episodes import EpisodeConfig
from fewshot.measure import EvaluationConfig
from harness.config import ScheduleConfig


@pytest.fixture(scope="session")
def glyph_root(tmp_path_factory) -> Path:
    """One folder for the embedded data set, which takes seconds to write."""
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture
def tiny(glyph_root, tmp_path):
    """The command with its smallest settings."""

    def make(**changes) -> FewShot:
        settings = {
            "root": glyph_root,
            "backbone": "cnn4_32",
            "methods": ("none",),
            "train_size": 128,
            "image_size": 16,
            "batch_size": 32,
            "schedule": ScheduleConfig(epochs=3, sched="constant"),
            "validation": EpisodeConfig(episodes=20),
            "evaluation": EvaluationConfig(shots=(1, 2), episodes=30, classifiers=("centroid",)),
            "out": tmp_path / "out",
        }
        return FewShot(**(settings | changes))

    return make
