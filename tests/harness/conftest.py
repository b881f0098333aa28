import pytest

import harness.data


@pytest.fixture(scope="module", autouse=True)
def _few_validation_glyphs():
    """Keeps the runs that are made in the tests' own process short, a file's own fixtures' too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness.data, "_GLYPHS_VALIDATION", 200)
        yield
