"""``python -m harness gallery``."""

from dataclasses import dataclass

from harness.settings import Settings, each_run


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
        from harness.measures.gallery import draw_gallery
        from harness.runs import in_turn

        runs = each_run(self.run, [self.method], [self.seed])
        device = self.begin(runs)
        for run, progress in in_turn(runs, self.out):
            path = draw_gallery(run, self.out, self.pairs, device, self.methods, progress)
        print(f"picture: {path}")
