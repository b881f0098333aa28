import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    ["train", "robustness", "overhead", "foreground", "agreement", "report", "gallery"],
)
def test_help_has_examples(command):
    result = run(command, "--help")
    assert result.returncode == 0
    _, _, text = result.stdout.partition("\n")  # less the usage line
    assert f"python -m harness {command}" in text


def test_bad_input_ends_with_one_line_and_no_traceback(tmp_path):
    result = run("train", "--methods", "cutout", "--out", str(tmp_path))
    assert result.returncode == 2
    assert re.fullmatch(r"harness: method must be one of none, .*, got 'cutout'\n", result.stderr)
