"""``python -m harness gallery``."""

from dataclasses import dataclass

import torch

from harness.commands.settings import Settings
from harness.gallery import draw_gallery
from harness.train import train


@dataclass(frozen=True)
class Gallery(Settings):
    """Draw OUT/gallery.png: pairs of images, their saliency, SAGE's mask, and every method's mix.

    The saliency is that of a network trained by the same settings; it is trained first where OUT
    does not hold it.

    Usage examples:

      python -m harness gallery --epochs 15 --out runs/gallery

      python -m harness gallery --image-size 64 --pairs 8
    """

    method: str = "none"
    """The method that the network is trained with."""
    methods: tuple[str, ...] = ("mixup", "cutmix", "saliencymix", "puzzlemix", "sage")
    """Methods whose mixes are drawn; SAGE's always are, with their masks."""
    seed: int = 0
    """The run's seed; also draws the pairs."""
    pairs: int = 6
    """Rows of the picture."""

    def __call__(self) -> None:
        run, device = self.run(self.method, self.seed), torch.device(self.device)
        train(run, self.out, device)
        print(f"picture: {draw_gallery(run, self.out, self.pairs, device, self.methods)}")
