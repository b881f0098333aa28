"""Curves of a run while it trains, for TensorBoard."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.run_config import RunConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def summary_writer() -> "type[SummaryWriter]":
    """Finds torch's writer; raises an ImportError if what it needs is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard=True needs the package tensorboard: pip install tensorboard "
            f"({' '.join(str(error).split())})"
        ) from error
    return SummaryWriter


class Curves:
    """Writes a run's figures after each epoch to OUT/tensorboard/NAME, the name its checkpoint's.

    Where a run goes on, TensorBoard drops what an earlier process wrote of the epochs that are
    trained again.
    """

    def __init__(self, config: RunConfig, out: Path) -> None:
        self._folder = out / "tensorboard" / config.name()
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> "Curves":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._writer is not None:
            self._writer.close()

    def __call__(self, epoch: int, figures: dict[str, Any]) -> None:
        """Writes the figures of an epoch, counted from 1; what is no number is left out."""
        if self._writer is None:
            self._writer = summary_writer()(self._folder, purge_step=epoch)
        for name, value in figures.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()
