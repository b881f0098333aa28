"""The check of class indices that the transforms have in common."""

import torch
from torch import Tensor


def check_range(name: str, targets: Tensor, num_classes: int) -> None:
    """Raises a ValueError if class indices ``[B]`` lie outside of ``[0, num_classes)``.

    Only on the CPU: elsewhere the host would have to wait for the device to tell, and there the
    scatter that makes soft targets of them asserts it as well.
    """
    if targets.device.type != "cpu" or not len(targets):
        return
    smallest, largest = (int(v) for v in torch.aminmax(targets))
    if smallest < 0 or largest >= num_classes:
        raise ValueError(
            f"{name} must be in [0, {num_classes}), got {smallest} to {largest}; check num_classes"
        )
