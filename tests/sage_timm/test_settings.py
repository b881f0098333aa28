"""The settings, said once: in a signature, on a command line, and without waiting for torch."""

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import sage_timm
from sage_timm import SageMix, SageMixup, SageSettings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "command",
    [
        "import sage_timm.settings; sage_timm.SageSettings()",
        "import runpy; runpy.run_module('sage_timm', run_name='__main__')",
    ],
)
def test_settings_and_help_do_not_wait_for_torch(command):
    code = f"import sys\nsys.argv[1:] = ['--help']\ntry:\n    {command}\nfinally:\n    "
    code += "assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_package_exports_functions_whatever_is_imported_first():
    code = "import sage_timm.blend, sage_timm.sage, sage_timm\n"
    code += "from sage_timm import *\n"
    code += "assert all(map(callable, (sage_timm.blend, sage_timm.saliency, blend, saliency)))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert set(sage_timm.__all__) <= set(dir(sage_timm))
    with pytest.raises(AttributeError, match="no attribute 'mixup_fn'"):
        sage_timm.mixup_fn  # noqa: B018


@pytest.mark.parametrize("transform", [SageMixup, SageMix])
def test_transforms_show_the_settings_and_refuse_unknown_ones(transform):
    shown = inspect.signature(transform).parameters
    for field in fields(SageSettings):
        parameter = shown[field.name]
        assert (parameter.default, parameter.kind) == (field.default, parameter.KEYWORD_ONLY)
    assert not any(parameter.kind == parameter.VAR_KEYWORD for parameter in shown.values())
    with pytest.raises(TypeError, match="unexpected keyword argument 'lamda_max'"):
        transform(lamda_max=0.5)


def test_a_dtype_is_kept_by_its_name():
    by_name = SageSettings(saliency_dtype="bfloat16")
    assert SageSettings(saliency_dtype=torch.bfloat16) == by_name
    assert SageMixup(saliency_dtype=torch.bfloat16).sage.settings == by_name
