"""The registry of classifiers."""

from collections.abc import Callable

from torch import Tensor

Classifier = Callable[[Tensor, Tensor], Tensor]
"""Embeddings of support images ``[E, W, S, D]`` and of query images ``[E, W, Q, D]`` of E episodes
to each query's scores of the ways, ``[E, W, Q, W]``; the highest tells the predicted way."""

CLASSIFIERS: dict[str, Classifier] = {}
"""The classifiers, by name."""


def register(name: str) -> Callable[[Classifier], Classifier]:
    """Puts a classifier into the registry.

    Args:
        name: What it is called on the command line.

    Raises:
        ValueError: If there is a classifier of that name.
    """

    def put(classifier: Classifier) -> Classifier:
        if name in CLASSIFIERS:
            raise ValueError(f"name must be new, but there is a classifier {name!r}")
        CLASSIFIERS[name] = classifier
        return classifier

    return put
