import pytest

import harness.data


@pytest.fixture(autouse=True)
def _few_validation_glyphs(monkeypatch):
    """Keeps the runs that are made in the tests' own process short."""
    monkeypatch.setattr(harness.data, "_GLYPHS_VALIDATION", 200)
