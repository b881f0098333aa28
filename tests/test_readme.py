import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("page", "count"), [("README.md", 2), ("docs/index.md", 1)])
def test_the_code_on_the_first_pages_runs_as_it_stands(tmp_path, page, count):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert len(blocks) == count
    for block in blocks:
        script = tmp_path / "readme.py"
        script.write_text(block)
        subprocess.run([sys.executable, script], check=True, cwd=ROOT)
