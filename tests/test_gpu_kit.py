"""The kit for a GPU, small and on the CPU: what it writes, and that it goes on where it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.measures.overhead import benchmarks
from harness.store import read_results

ROOT = Path(__file__).parents[1]


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    for split, label in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        folder = tmp_path / "data/cifar10" / split / label
        folder.mkdir(parents=True)
        for number in range(60):
            pixels = random.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


def kit(out, *options):
    command = [sys.executable, str(ROOT / "tools/gpu.py"), str(out), "--small", *map(str, options)]
    # The kit runs pytest itself, which must not take itself for a worker of this one.
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_it_measures_what_it_says_and_goes_on_where_it_was(tmp_path, data):
    out = tmp_path / "out"
    only = ["--only", "mixing", "steps-preactresnet8_cifar-4x16-half-16", "cifar10"]
    kit(out, "--data-dir", data, "--minutes", 0.4, *only)  # most of it is cut off
    said = kit(out, "--data-dir", data, "--minutes", 5, *only)
    ways = {line["way"]: line for line in read_results(out / "mixing.jsonl")}
    assert ways["eager"]["difference"] == 0
    assert ways["compiled"]["difference"] < 1e-5
    assert ways["eager"]["milliseconds"] > 0
    assert "error" in ways["CUDA graph"]  # there is none here
    figures = out / "steps-preactresnet8_cifar-4x16-half-16/overhead.json"
    assert figures.exists(), said
    assert {line["part"] for line in benchmarks(figures)} == {"step", "mixing", "saliency"}
    results = read_results(out / "cifar10/results.jsonl")
    assert len(results) == len({json.dumps(line["config"]) for line in results}) == 8
    done = read_results(out / "steps.jsonl")
    kit(out, "--data-dir", data, "--minutes", 5, *only)
    assert read_results(out / "steps.jsonl") == done
    assert read_results(out / "cifar10/results.jsonl") == results


def test_it_imports_nothing_that_a_bare_machine_lacks():
    """Of the extras, learn2learn, OpenCV, gco and torchattacks; and tyro, of the commands."""
    lacking = ("learn2learn", "cv2", "gco", "torchattacks", "tyro", "fewshot")
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import gpu\n"
        f"sys.exit(', '.join(name for name in {lacking} if name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stderr.strip() == ""
