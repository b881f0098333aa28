import re
import shutil
import subprocess
import sys
from pathlib import Path

from harness.results import read_results

ROOT = Path(__file__).parents[1]


def test_the_method_that_the_docs_add_trains(tmp_path):
    """Does to a copy what docs/harness.md says: a file, a line, a command."""
    text = (ROOT / "docs/harness.md").read_text()
    file, line = re.findall(r"```(?:python|text)\n(.*?)```", text, flags=re.DOTALL)
    for package in ("harness", "sage_timm"):
        shutil.copytree(ROOT / package, tmp_path / package)
    methods = tmp_path / "harness/methods"
    (methods / "resizemix.py").write_text(file)
    registry = (methods / "__init__.py").read_text()
    assert registry.count("    puzzlemix,\n") == 1
    (methods / "__init__.py").write_text(
        registry.replace("    puzzlemix,\n", f"    puzzlemix,\n{line}")
    )
    flags = "--methods resizemix --epochs 1 --train-size 100 --image-size 8 --batch-size 20"
    command = [sys.executable, "-m", "harness", "train", *flags.split(), "--out", "runs"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (result,) = read_results(tmp_path / "runs/results.jsonl")
    assert result["method"] == "resizemix"
