"""SaliencyMix (Uddin et al., SaliencyMix: A Saliency Guided Data Augmentation, ICLR 2021)."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from harness.methods.base import Training, needs, register

_ALPHA = 1.0  # the paper's
_PROBABILITY = 0.5  # the paper's


@register("saliencymix", requires="cv2")
class SaliencyMix:
    """Cuts the most salient region of one image and pastes it in the same place of all others.

    As in the paper, the region is that of one image of the batch, the first one's partner; its
    centre is the peak of OpenCV's static fine-grained saliency, its area 1 - lambda. The partner of
    an image is the one in its place in the reversed batch. OpenCV sees the images as they were
    before the model's normalisation.

    Raises:
        ImportError: If OpenCV's contributed modules are not installed.

    Source: Uddin et al., ICLR 2021, Sec. 3; the saliency is Montabone and Soto's (2010).
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.alpha = training.config.alpha_or(_ALPHA)
        self.saliency = needs("cv2", "saliencymix").saliency.StaticSaliencyFineGrained_create()

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Draws whether to mix images ``[B, C, H, W]``, and the region's area."""
        lam = 1.0
        if np.random.rand() < _PROBABILITY:
            area = 1 - np.random.beta(self.alpha, self.alpha)
            partners = images.flip(0)
            top, bottom, left, right = _region(self._saliency_map(partners[0]), area)
            images = images.clone()
            images[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
            height, width = images.shape[-2:]
            lam = 1 - (bottom - top) * (right - left) / (height * width)
        return images, self.training.soft_targets(targets, lam)

    def _saliency_map(self, image: Tensor) -> NDArray[np.float32]:
        pixels = self.training.pixels(image.cpu())
        as_bytes = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
        _, saliency = self.saliency.computeSaliency(as_bytes.numpy())
        return saliency


def _region(saliency: NDArray[np.float32], area: float) -> tuple[int, int, int, int]:
    """Returns the box of a share of the area around the peak, clipped at the image's border."""
    height, width = saliency.shape
    row, column = np.unravel_index(saliency.argmax(), saliency.shape)
    cut_height, cut_width = int(height * np.sqrt(area)), int(width * np.sqrt(area))
    top, bottom = np.clip([row - cut_height // 2, row + cut_height // 2], 0, height)
    left, right = np.clip([column - cut_width // 2, column + cut_width // 2], 0, width)
    return int(top), int(bottom), int(left), int(right)
