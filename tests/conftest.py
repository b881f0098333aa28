import pytest
import torch
from torch import nn


class SmallNet(nn.Module):
    """A convolution, batch norm and a head: enough for everything that a call could touch."""

    def __init__(self, channels=3, classes=5, dtype=torch.float32):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, padding=1, dtype=dtype)
        self.norm = nn.BatchNorm2d(8, dtype=dtype)
        self.head = nn.Linear(8, classes, dtype=dtype)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).square().mean(dim=(2, 3)))


@pytest.fixture
def small_net():
    def make(**kwargs):
        torch.manual_seed(0)
        return SmallNet(**kwargs)

    return make


@pytest.fixture
def batch():
    def make(count=6, channels=3, height=12, width=9, classes=5, dtype=torch.float32, seed=1):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, channels, height, width, generator=generator, dtype=dtype)
        return x, torch.randint(classes, (count,), generator=generator)

    return make


@pytest.fixture
def saliency_pair():
    """Two weighted, heavy-tailed map batches ``[B, 1, H, W]`` in float64, as SAGE makes them."""

    def make(count=3, height=6, width=9, lam=0.35, seed=0):
        generator = torch.Generator().manual_seed(seed)
        shape = (2, count, 1, height, width)
        maps = torch.rand(shape, generator=generator, dtype=torch.float64) ** 4
        maps = maps / maps.sum(dim=(3, 4), keepdim=True)
        return lam * maps[0], (1 - lam) * maps[1]

    return make
