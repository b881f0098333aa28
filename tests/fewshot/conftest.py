from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb
from PIL import Image
from torch import nn

import harness.data
from fewshot.commands import FewShot
from fewshot.config import PREFIX
from fewshot.episodes import EpisodeConfig
from fewshot.learners import LEARNERS
from fewshot.measure import EvaluationConfig
from fewshot.run_config import FewShotConfig
from fewshot.tasks import TaskConfig
from harness.config import ScheduleConfig
from harness.data import DataConfig, load_splits
from harness.methods.base import MethodConfig

TASKS = {"ways": 3, "shots": 2, "queries": 4, "tasks": 2, "adaptation_steps": 3}


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


class Hues:
    """Images of 16 x 16 pixels, one hue a class, under noise of their own.

    Args:
        classes: The number of classes.
        per_class: The number of images of each.
        first: The first class's hue, in parts of the circle.
        noise: How much of a pixel is noise, of 255.
        parts: How many parts the circle has.
    """

    def __init__(self, classes, per_class, first, noise, parts=16):
        self.targets = [target for target in range(classes) for _ in range(per_class)]
        self.classes = [str(first + target) for target in range(classes)]
        self.transform = None
        random = np.random.default_rng(first)
        grain = random.random((len(self.targets), 16, 16, 3))
        hues = [hsv_to_rgb(((first + target) / parts, 1, 1)) for target in self.targets]
        pixels = noise * grain + (255 - noise) * np.array(hues)[:, None, None]
        self.images = pixels.astype(np.uint8)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index])
        return image if self.transform is None else self.transform(image), self.targets[index]


@pytest.fixture
def hues(monkeypatch):
    """Puts a data set of three splits into the harness, and tells its name."""

    def opened(_config, split):
        first = {"train": 0, "validation": 6, "test": 11}[split]
        return Hues(6 if split == "train" else 5, 12, first, 200)

    name = PREFIX + "hues"
    monkeypatch.setitem(harness.data._REGISTERED, name, (opened, 0.0))
    return name


class TinyNet(nn.Module):
    """A network in float64 without batch norm, with the face of timm's."""

    pretrained_cfg: ClassVar = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}

    def __init__(self, classes=6, pixels=3 * 16 * 16):
        super().__init__()
        self.body = nn.Linear(pixels, 4, dtype=torch.float64)
        self.reset_classifier(classes)

    def reset_classifier(self, classes):
        self.head = nn.Linear(4, classes, dtype=torch.float64)

    def get_classifier(self):
        return self.head

    def forward_features(self, images):
        return torch.tanh(self.body(images.flatten(1).double()))

    def forward_head(self, embeddings, pre_logits=False):
        return embeddings if pre_logits else self.head(embeddings)

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


@pytest.fixture
def tiny_net():
    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture
def make_learner(hues):
    """Makes a learner of a network, for the hues and small tasks."""

    def make(model, learner, method="none", mixing=None, **tasks):
        config = FewShotConfig(
            method,
            seed=0,
            model="cnn4_32",
            data=DataConfig(dataset=hues, image_size=16),
            mixing=mixing or MethodConfig(),
            learner=learner,
            tasks=TaskConfig(**{**TASKS, **tasks}),
            validation=EpisodeConfig(ways=3),
        )
        return LEARNERS[learner](config, model, load_splits(config.data, 0), torch.device("cpu"))

    return make
