import pytest
import timm
import torch
from timm.layers import DropPath

from harness.models import create_network

# What the authors' networks of the same names have for 10 classes, by their papers' tables:
# PreActResNet18 11.2 million, WRN16-8 11.0 million, ResNeXt29-4-24 4.9 million.
PAPER_PARAMETERS = {
    "preactresnet18_cifar": 11.2e6,
    "wrn16_8_cifar": 11.0e6,
    "resnext29_4_24_cifar": 4.9e6,
    "preactresnet8_cifar": 0.078e6,
}


@pytest.mark.parametrize("name", PAPER_PARAMETERS)
def test_networks_are_timms_by_name(name):
    model = timm.create_model(name, num_classes=7)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model(torch.randn(2, 3, 40, 24)).shape == (2, 7)
    parameters = sum(p.numel() for p in timm.create_model(name, num_classes=10).parameters())
    assert parameters == pytest.approx(PAPER_PARAMETERS[name], rel=0.02)


@pytest.mark.parametrize("name", PAPER_PARAMETERS)
def test_the_stem_keeps_the_resolution(name):
    """At 32 pixels the first stage works at 32 x 32, unlike in the ImageNet networks."""
    model = timm.create_model(name, num_classes=10)
    first_stage = model.layer1 if hasattr(model, "layer1") else model.stages[0]
    shapes = []
    first_stage.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape[-2:]))
    model(torch.randn(1, 3, 32, 32))
    assert shapes == [(32, 32)]


def test_other_channels():
    model = timm.create_model("preactresnet8_cifar", num_classes=4, in_chans=1)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 4)


def test_there_are_no_pretrained_weights():
    with pytest.raises((ValueError, RuntimeError), match="pretrained"):
        timm.create_model("preactresnet8_cifar", pretrained=True)


def test_drop_path_reaches_the_blocks():
    network = create_network("preactresnet8_cifar", 4, 32, drop_path=0.3)
    drops = [part.drop_prob for part in network.modules() if isinstance(part, DropPath)]
    assert drops == pytest.approx([0.15, 0.3])  # of the first block it is 0
    with pytest.raises(ValueError, match=r"drop_path=0.3: vgg11 has no blocks that it could leave"):
        create_network("vgg11", 4, 32, drop_path=0.3)
