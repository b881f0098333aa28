"""Few-shot evaluation: backbones trained with each mixing method, measured on new classes."""

import warnings
from contextlib import redirect_stderr
from io import StringIO

# learn2learn imports gym, which prints that it is not maintained.
with redirect_stderr(StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import learn2learn  # noqa: F401
