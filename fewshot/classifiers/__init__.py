"""The classifiers, one file each; importing a file puts its classifiers into the registry.

They stand in tables in the order of this list.
"""

from fewshot.classifiers import centroid, logistic, svm  # noqa: F401
from fewshot.classifiers.base import CLASSIFIERS

__all__ = ["CLASSIFIERS"]
