"""Few-shot evaluation: backbones trained with each mixing method, measured on new classes."""

from contextlib import suppress

# learn2learn imports gym, which prints that it is not maintained.
with suppress(ImportError):
    from gym_notices.notices import notices

    notices.clear()
