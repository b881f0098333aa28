import copy
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from torch.utils.data import DataLoader, TensorDataset

from harness.store import read_results
from sage_timm import SageMixup

ROOT = Path(__file__).parents[1]


def test_the_method_that_the_docs_add_is_known_to_every_command(tmp_path):
    """Does what docs/harness.md says: a file, three commands."""
    text = (ROOT / "docs/harness.md").read_text().partition("## Adding a method")[2]
    file, lines = re.findall(r"```(?:python)?\n(.*?)```", text, flags=re.DOTALL)[:2]
    (tmp_path / "my_methods.py").write_text(file)
    small = "--epochs 1 --train-size 100 --image-size 8 --batch-size 20"
    for line, options in zip(lines.splitlines(), (small, "--images 20", ""), strict=True):
        command = [sys.executable, *line.removeprefix("python").split(), *options.split()]
        subprocess.run(command, cwd=tmp_path, check=True)
    results = read_results(tmp_path / "runs/results.jsonl")
    assert {line["method"] for line in results} == {"mixup", "vertical-concat"}
    measured = read_results(tmp_path / "runs/robustness.jsonl")
    assert {line["method"] for line in measured} == {"mixup", "vertical-concat"}
    assert "vertical-concat" in (tmp_path / "runs/report.md").read_text()


@pytest.fixture
def snippets():
    """The blocks of docs/timm.md by what they show: timm's script, PyTorch, Accelerate, Fabric."""
    text = (ROOT / "docs/timm.md").read_text()
    found = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return dict(zip(("timm", "torch", "accelerate", "fabric"), found, strict=True))


@pytest.fixture
def training(small_net):
    """What a snippet finds there: a model, its optimiser, its data."""
    model = small_net(classes=10)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 12, 12, generator=generator)
    targets = torch.randint(10, (8,), generator=generator)
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": DataLoader(TensorDataset(images, targets), batch_size=4),
    }


def test_the_loops_that_the_docs_show_all_train_alike(snippets, training):
    """PyTorch's is run as it stands; the others begin from its mixup_fn and loss_fn."""
    start = copy.deepcopy(training)
    ended = {}
    for name in ("torch", "accelerate", "fabric"):
        names = copy.deepcopy(start)
        names["optimizer"] = torch.optim.SGD(names["model"].parameters(), lr=0.1)
        names |= {"loss_fn": SoftTargetCrossEntropy(), "mixup_fn": SageMixup(num_classes=10)}
        bare = names["model"]
        np.random.seed(0)
        exec(snippets[name], names)
        ended[name] = bare.state_dict()
    before = start["model"].state_dict()
    assert not torch.equal(ended["torch"]["conv.weight"], before["conv.weight"])
    for name in ("accelerate", "fabric"):
        for key, value in ended["torch"].items():
            torch.testing.assert_close(ended[name][key], value, msg=f"{name}: {key}")


def test_the_three_lines_for_timms_script(snippets, training):
    mixup_args = {"mixup_alpha": 1.0, "num_classes": 10, "mode": "elem"}
    names = {**training, "mixup_args": mixup_args, "train_loss_fn": SoftTargetCrossEntropy()}
    exec(snippets["timm"], names)
    assert len([line for line in snippets["timm"].splitlines() if line]) == 3
    images, targets = next(iter(training["loader"]))
    mixed, soft_targets = names["mixup_fn"](images, targets)
    assert not torch.equal(mixed, images)
    assert soft_targets.shape == (4, 10)
