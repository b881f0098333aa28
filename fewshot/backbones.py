"""learn2learn's few-shot backbones as timm networks; importing this file registers them."""

from typing import Any

import torch
import torch.nn.functional as F
from learn2learn.vision.models import CNN4Backbone, ResNet12Backbone, WRN28Backbone
from timm.models import register_model
from torch import Tensor, nn

# The mean and standard deviation of mini-ImageNet's training images (Lee et al., CVPR 2019).
_CONFIG = {
    "input_size": (3, 84, 84),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "mean": (0.4721, 0.4533, 0.4099),
    "std": (0.2772, 0.2678, 0.2845),
    "num_classes": 64,
}
_SMALLEST_RESNET12 = 80  # pixels; below, the last stage is smaller than the blocks it drops

default_cfgs = {
    name: _CONFIG | {"fixed_input_size": name != "wrn28"}
    for name in ("cnn4", "cnn4_32", "resnet12", "wrn28")
}


class Backbone(nn.Module):
    """A feature extractor of learn2learn's and a linear classifier, with the face of timm's.

    ``features`` maps images ``[B, C, H, W]`` to embeddings ``[B, num_features]``; ``stages`` are
    the names of its stages, with their channels.
    """

    def __init__(
        self, features: nn.Module, num_features: int, num_classes: int, stages: dict[str, int]
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.feature_info = [
            {"module": f"features.{name}", "num_chs": channels} for name, channels in stages.items()
        ]
        self.features = features
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Puts a new classifier in the old one's place, as learn2learn's CNN4 initialises it."""
        self.num_classes = num_classes
        self.classifier = nn.Linear(self.num_features, num_classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def get_classifier(self) -> nn.Linear:
        return self.classifier

    def forward_features(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.features(images)
        return embeddings

    def forward_head(self, embeddings: Tensor, pre_logits: bool = False) -> Tensor:
        return embeddings if pre_logits else self.classifier(embeddings)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class _WideResNet(WRN28Backbone):
    """learn2learn's pools over 21 x 21, that is over images of 84 pixels; this one over all."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return F.adaptive_avg_pool2d(F.relu(self.bn1(maps)), 1).flatten(1)


@register_model
def cnn4(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """Four convolutions of 64 channels, as in Prototypical Networks (Snell et al., 2017)."""
    return _cnn4("cnn4", 64, pretrained, **kwargs)


@register_model
def cnn4_32(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """Four convolutions of 32 channels, as in MAML (Finn et al., 2017)."""
    return _cnn4("cnn4_32", 32, pretrained, **kwargs)


def _cnn4(
    name: str, channels: int, pretrained: bool, num_classes: int = 64, img_size: int = 84, **_: Any
) -> Backbone:
    side = img_size // 2**4
    if side < 1:
        raise ValueError(f"{name} halves the image four times and needs 16 pixels, got {img_size}")
    features = CNN4Backbone(hidden_size=channels)
    stages = dict.fromkeys(("0", "1", "2", "3"), channels)
    backbone = Backbone(features, channels * side**2, num_classes, stages)
    return _finished(name, backbone, pretrained)


@register_model
def resnet12(
    pretrained: bool = False, num_classes: int = 64, img_size: int = 84, **_timms: Any
) -> Backbone:
    """ResNet12 of 64 to 640 channels with DropBlock (Lee et al., CVPR 2019)."""
    if img_size < _SMALLEST_RESNET12:
        raise ValueError(
            f"resnet12 drops blocks of 5 x 5 and needs an image_size of {_SMALLEST_RESNET12} or "
            f"more, got {img_size}: ask for 84, to which smaller images are enlarged"
        )
    features = ResNet12Backbone(avg_pool=False)
    features.avgpool = nn.AdaptiveAvgPool2d(1)  # learn2learn's is for 84 pixels alone
    for module in features.modules():
        if hasattr(module, "DropBlock"):
            _count_in_a_buffer(module)
    stages = {"layer1": 64, "layer2": 160, "layer3": 320, "layer4": 640}
    return _finished("resnet12", Backbone(features, 640, num_classes, stages), pretrained)


@register_model
def wrn28(pretrained: bool = False, num_classes: int = 64, **_timms: Any) -> Backbone:
    """Wide ResNet 28-10 (Dhillon et al., ICLR 2020)."""
    stages = {"layer1": 160, "layer2": 320, "layer3": 640}
    backbone = Backbone(_WideResNet(), 640, num_classes, stages)
    return _finished("wrn28", backbone, pretrained)


def _finished(name: str, backbone: Backbone, pretrained: bool) -> Backbone:
    if pretrained:
        raise ValueError(f"pretrained=True: {name} has no pretrained weights")
    backbone.pretrained_cfg = backbone.default_cfg = default_cfgs[name]
    return backbone


def _count_in_a_buffer(block: nn.Module) -> None:
    """Counts the batches by which DropBlock grows in a buffer, and those of training only.

    Checkpoints leave learn2learn's plain integer out, and passes for saliency would move it.
    """
    del block.num_batches_tracked
    block.register_buffer("num_batches_tracked", torch.zeros(()))

    def uncount(module: nn.Module, _inputs: Any, _output: Any) -> None:
        if not module.training:
            module.num_batches_tracked -= 1

    block.register_forward_hook(uncount)
