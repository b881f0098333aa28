"""What docs/loops.md shows, and what the tests of it train."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.functional import to_pil_image

from sage_timm import SageMixup
from sage_timm.gradient import in_saliency_pass
from tests.model_snapshot import assert_same, snapshot

PAGE = (Path(__file__).parents[1] / "docs/loops.md").read_text()


def blocks(heading, language="python"):
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.S)


def run(heading, **scope):
    """Runs the blocks below a heading, after the first of the page; returns what they define."""
    exec(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], scope)
    for block in blocks(heading):
        exec(block, scope)
    return scope


def images_and_labels():
    """Forty images of ten classes, each of a colour of its own."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randn(10, 3, generator=generator)
    labels = torch.arange(10).repeat(4)
    noise = torch.randn(40, 3, 12, 12, generator=generator) / 4
    return noise + colours[labels][:, :, None, None], labels


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 36, 10)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


class Watch:
    """Asserts that mixing leaves the model alone, and notes what it was trained on."""

    def __init__(self, model, monkeypatch):
        self.mixed, self.targets, self.seen = [], [], []
        # Held by a class: what a hook's object holds, mixing puts back as it was before its pass.
        self.passes = type("Passes", (), {"autocast": []})
        model.register_forward_pre_hook(self.note_images, with_kwargs=True)
        (*_, last) = model.modules()
        last.register_forward_pre_hook(self.note_autocast)
        call = SageMixup.__call__

        def mix(mixup_fn, x, y):
            before, clean = snapshot(model), x.clone()
            mixed, targets = call(mixup_fn, x, y)
            assert_same(before, snapshot(model))
            assert not torch.equal(mixed, clean)
            assert targets.shape == (len(x), 10)
            self.mixed.append(mixed)
            self.targets.append(targets)
            return mixed, targets

        monkeypatch.setattr(SageMixup, "__call__", mix)

    def note_images(self, model, args, kwargs):
        if model.training and not in_saliency_pass():
            self.seen.append((*args, *kwargs.values())[0])

    def note_autocast(self, layer, _args):
        if layer.training:
            self.passes.autocast.append(torch.is_autocast_enabled("cpu"))

    def check(self, steps, autocast=False):
        """Asserts that each step was a mixed batch's; returns the number of saliency passes.

        All passes have to be under autocast, or none.
        """
        assert set(self.passes.autocast) == {autocast}
        assert len(self.mixed) == len(self.seen) == steps
        for mixed, seen in zip(self.mixed, self.seen, strict=True):
            assert torch.equal(mixed, seen)
        return len(self.passes.autocast) - steps


@torch.no_grad()
def clean_loss(model, forward=None, images=None):
    labels = images_and_labels()[1]
    images = images_and_labels()[0] if images is None else images
    model.eval()
    loss = F.cross_entropy(forward(model, images) if forward else model(images), labels)
    model.train()
    return loss.item()


def write_pictures(folder):
    """Writes the images into a folder a class, and returns their pixels."""
    images, labels = images_and_labels()
    pixels = (64 * images + 96).clamp(0, 255).byte()
    for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(folder / f"{label}/{number}.png")
    return pixels


def vit():
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=12, patch_size=3, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, num_labels=10,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)
