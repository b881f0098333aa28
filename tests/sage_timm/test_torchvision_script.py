"""torchvision's references/classification/train.py, with the lines of docs/loops.md changed.

The variable TORCHVISION_REFERENCES names the folder, of a checkout of torchvision's repository.
"""

import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torchvision.transforms import v2

from tests.loops_page import Net, Watch, blocks, clean_loss, write_pictures


def changed(source, diff):
    """Applies a diff whose hunks have no line numbers."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(s[1:] for s in lines if s[0] in (" ", sign)) for sign in "-+")
        assert source.count(before) == 1, f"found {source.count(before)} times:\n{before}"
        source = source.replace(before, after)
    return source


@pytest.mark.skipif(
    "TORCHVISION_REFERENCES" not in os.environ,
    reason="TORCHVISION_REFERENCES does not name torchvision's references/classification",
)
@pytest.mark.parametrize("cutmix_alpha", [0, 1])
def test_torchvisions_script(monkeypatch, tmp_path, cutmix_alpha):
    for file in Path(os.environ["TORCHVISION_REFERENCES"]).glob("*.py"):
        shutil.copy(file, tmp_path)
    script = tmp_path / "train.py"
    (diff,) = blocks("torchvision's `references/classification/train.py`", "diff")
    script.write_text(changed(script.read_text(), diff))
    for split in ("train", "val"):
        pixels = write_pictures(tmp_path / "data" / split)
    normalise = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = normalise(pixels.float() / 255)
    model = Net()
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: model)
    monkeypatch.syspath_prepend(tmp_path)
    before, modules = clean_loss(model, images=images), set(sys.modules)
    try:
        train = runpy.run_path(str(script))
        options = f"""
            --data-path {tmp_path}/data --output-dir {tmp_path}/out --device cpu --workers 1
            --epochs 6 --batch-size 10 --lr 0.05 --label-smoothing 0.1 --train-crop-size 12
            --val-crop-size 12 --val-resize-size 12 --mixup-alpha 1 --cutmix-alpha {cutmix_alpha}
        """
        watch = Watch(model, monkeypatch)
        torch.manual_seed(0)
        np.random.seed(0)
        train["main"](train["get_args_parser"]().parse_args(options.split()))
    finally:
        for name in set(sys.modules) - modules:  # one is called utils
            del sys.modules[name]
    assert watch.check(24) in (range(1, 24) if cutmix_alpha else [24])
    assert all(0 in targets for targets in watch.targets)  # smoothed by the criterion alone
    assert clean_loss(model, images=images) < 0.6 * before
