"""The networks of the comparison: timm's own, with the stems that 32-pixel images need.

Importing this file registers them with timm, so that ``timm.create_model`` knows their names.
"""

from typing import Any

import timm
from timm.data import resolve_data_config
from timm.layers import BatchNormAct2d, DropPath, create_conv2d
from timm.models import register_model
from timm.models.resnet import Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2
from torch import nn

# The mean and standard deviation of CIFAR-10's training images, as the authors of SAGE use them.
_CIFAR_CONFIG = {
    "input_size": (3, 32, 32),
    "fixed_input_size": False,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "mean": (0.4914, 0.4824, 0.4467),
    "std": (0.2471, 0.2435, 0.2616),
    "num_classes": 10,
}


def create_network(
    name: str, classes: int, image_size: int, in_chans: int = 3, drop_path: float | None = None
) -> nn.Module:
    """Makes a network by its name in timm.

    Args:
        name: Any that timm knows.
        classes: The number of classes.
        image_size: Height and width in pixels, for networks whose weights depend on it.
        in_chans: Channels of an image; one channel is normalised by the means over RGB's.
        drop_path: Probability that training leaves out the deepest block, less above it.

    Raises:
        ValueError: If ``drop_path`` is given, and the network has none.
    """
    known = timm.get_pretrained_cfg(name)
    fixed = known is not None and known.fixed_input_size
    options: dict[str, Any] = {"img_size": image_size} if fixed else {}
    if drop_path is not None:
        options["drop_path_rate"] = drop_path
    try:
        network: nn.Module = timm.create_model(
            name, num_classes=classes, in_chans=in_chans, **options
        )
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise _no_drop_path(name, drop_path) from error
    drops = (part.drop_prob for part in network.modules() if isinstance(part, DropPath))
    if drop_path is not None and not any(drops):
        raise _no_drop_path(name, drop_path)
    if in_chans == 1:
        known = resolve_data_config({}, model=network)
        grey = {key: (sum(known[key]) / len(known[key]),) for key in ("mean", "std")}
        network.pretrained_cfg = {**network.pretrained_cfg, **grey}
    return network


def _no_drop_path(name: str, drop_path: float | None) -> ValueError:
    return ValueError(f"drop_path={drop_path}: {name} has no blocks that it could leave out")


def _cifar(model: Any, pretrained: bool) -> Any:
    """Gives a network that no weights were published for timm's configuration of CIFAR-10."""
    if pretrained:
        raise ValueError("pretrained=True: the harness's CIFAR networks have no pretrained weights")
    model.pretrained_cfg = model.default_cfg = _CIFAR_CONFIG
    return model


def _own(arguments: dict[str, Any]) -> dict[str, Any]:
    """Drops what timm's create_model adds for networks with published weights."""
    timms = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    return {name: value for name, value in arguments.items() if name not in timms}


def _conv3x3(model: nn.Module, channels: int) -> nn.Module:
    conv = create_conv2d(model.in_chans, channels, kernel_size=3)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _preact_resnet(
    pretrained: bool, layers: list[int], channels: tuple[int, ...], stem: int, **kwargs: Any
) -> ResNetV2:
    """Makes a pre-activation ResNet (He et al., 2016) with basic blocks and a 3 x 3 stem."""
    model = ResNetV2(
        layers,
        channels=channels,
        stem_chs=stem,
        basic=True,
        bottle_ratio=1.0,
        conv_layer=create_conv2d,
        norm_layer=BatchNormAct2d,
        **_own(kwargs),
    )
    model.stem.conv = _conv3x3(model, stem)
    model.stem.pool = nn.Identity()
    return _cifar(model, pretrained)


@register_model
def preactresnet8_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetV2:
    """A small network that two CPU cores can train: one block a stage, 16 to 64 channels."""
    return _preact_resnet(pretrained, [1, 1, 1], (16, 32, 64), 16, **kwargs)


@register_model
def preactresnet18_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetV2:
    """PreActResNet18 (He et al., 2016) for 32-pixel images, as in SAGE's experiments."""
    return _preact_resnet(pretrained, [2, 2, 2, 2], (64, 128, 256, 512), 64, **kwargs)


@register_model
def wrn16_8_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetV2:
    """Wide ResNet 16-8 (Zagoruyko and Komodakis, 2016), as in SAGE's experiments."""
    return _preact_resnet(pretrained, [2, 2, 2], (128, 256, 512), 16, **kwargs)


@register_model
def resnext29_4_24_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNeXt29-4-24 (Xie et al., 2017) for 32-pixel images, as in SAGE's experiments."""
    size = {"channels": (64, 128, 256), "cardinality": 4, "base_width": 24}
    model = ResNet(Bottleneck, (3, 3, 3), **size, **_own(kwargs))
    model.conv1 = _conv3x3(model, 64)
    model.maxpool = model.layer4 = nn.Identity()
    return _cifar(model, pretrained)
