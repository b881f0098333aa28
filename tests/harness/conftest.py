import pytest
import timm
import torch

import harness.data
import harness.models


@pytest.fixture(scope="module", autouse=True)
def _few_validation_glyphs():
    """Keeps the runs that are made in the tests' own process short, a file's own fixtures' too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness.data, "_GLYPHS_VALIDATION", 200)
        yield


@pytest.fixture
def model():
    """A network of five classes, in training."""
    torch.manual_seed(0)
    return timm.create_model("preactresnet8_cifar", num_classes=5)


@pytest.fixture
def images(batch):
    """Eight images of 32 pixels, and their classes."""
    return batch(count=8, height=32, width=32)
