"""Installs the one wheel of a folder in an empty environment, imports it, and looks inside.

Usage: python tests/check_wheel.py DIST EMPTY_ENVIRONMENT
"""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path


def main(dist: Path, environment: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    foreign = [n for n in names if not n.startswith(("sage_timm/", "sage_timm-"))]
    assert not foreign, f"the wheel holds more than sage_timm: {foreign}"
    assert "sage_timm/py.typed" in names, "py.typed is not in the wheel"
    venv.create(environment, with_pip=True, clear=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    code = (
        "import sage_timm; print(sage_timm.__version__, sage_timm.SageMixup(), sage_timm.__file__)"
    )
    subprocess.run([python, "-c", code], check=True, cwd=environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
