"""The old name of what is in :mod:`harness.loader`."""

from harness.loader import draw_indices, load_images  # noqa: F401
