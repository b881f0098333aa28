"""SaliencyMix (Uddin et al., SaliencyMix: A Saliency Guided Data Augmentation, ICLR 2021)."""

import numpy as np
from numpy.typing import NDArray
from timm.data import resolve_data_config
from timm.data.mixup import mixup_target
from torch import Tensor, nn

from harness.methods.base import MethodConfig, needs, register, unnormalised

_ALPHA = 1.0  # the paper's
_PROBABILITY = 0.5  # the paper's


class SaliencyMix:
    """Cuts the most salient region of one image and pastes it in the same place of all others.

    As in the paper, the region is that of one image of the batch, the first one's partner; its
    centre is the peak of OpenCV's static fine-grained saliency, its area 1 - lambda. The partner of
    an image is the one in its place in the reversed batch.

    Args:
        classes: The number of classes.
        mean: The mean of each channel that the images were normalised with.
        std: Their standard deviation.
        alpha: The Beta distribution's parameter.
        label_smoothing: Label smoothing.

    Raises:
        ImportError: If OpenCV's contributed modules are not installed.

    Source: Uddin et al., ICLR 2021, Sec. 3; the saliency is Montabone and Soto's (2010).
    """

    def __init__(
        self,
        classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        alpha: float,
        label_smoothing: float,
    ) -> None:
        self.classes = classes
        self.mean = mean
        self.std = std
        self.alpha = alpha
        self.label_smoothing = label_smoothing
        self.saliency = needs("cv2", "saliencymix").saliency.StaticSaliencyFineGrained_create()

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Draws whether to mix, and the region's area; see the class."""
        lam = 1.0
        if np.random.rand() < _PROBABILITY:
            area = 1 - np.random.beta(self.alpha, self.alpha)
            partners = images.flip(0)
            top, bottom, left, right = _region(self._saliency_map(partners[0]), area)
            images = images.clone()
            images[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
            height, width = images.shape[-2:]
            lam = 1 - (bottom - top) * (right - left) / (height * width)
        return images, mixup_target(targets, self.classes, lam, self.label_smoothing)

    def _saliency_map(self, image: Tensor) -> NDArray[np.float32]:
        pixels = unnormalised(image.cpu(), self.mean, self.std).clamp(0, 1) * 255
        _, saliency = self.saliency.computeSaliency(
            pixels.round().byte().permute(1, 2, 0).contiguous().numpy()
        )
        return saliency


@register("saliencymix", requires="cv2")
def build(config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int) -> SaliencyMix:
    """Makes SaliencyMix, which sees the images as they were before the model's normalisation."""
    data_config = resolve_data_config({}, model=model)
    mean, std = data_config["mean"], data_config["std"]
    return SaliencyMix(classes, mean, std, config.alpha_or(_ALPHA), config.label_smoothing)


def _region(saliency: NDArray[np.float32], area: float) -> tuple[int, int, int, int]:
    """The box of a share of the area around the peak, clipped at the image's border."""
    height, width = saliency.shape
    row, column = np.unravel_index(saliency.argmax(), saliency.shape)
    cut_height, cut_width = int(height * np.sqrt(area)), int(width * np.sqrt(area))
    top, bottom = np.clip([row - cut_height // 2, row + cut_height // 2], 0, height)
    left, right = np.clip([column - cut_width // 2, column + cut_width // 2], 0, width)
    return int(top), int(bottom), int(left), int(right)
