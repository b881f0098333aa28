"""From embeddings and episodes to accuracies, with their intervals."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from fewshot.classifiers import CLASSIFIERS
from fewshot.config import NORMALIZATIONS
from fewshot.episodes import Episodes
from harness.figures import half_width

_CHUNK_BYTES = 16 * 2**20  # of embeddings gathered at a time: more goes through memory, not cache


def normalized(embeddings: Tensor, normalization: str, base_mean: Tensor | None = None) -> Tensor:
    """Normalises embeddings before a classifier (Wang et al., SimpleShot, arXiv 1911.04623).

    Args:
        embeddings: ``[N, D]``.
        normalization: ``un`` leaves them as they are; ``l2n`` scales each to unit length; ``cl2n``
            first subtracts ``base_mean``. An embedding of zeros stays zero.
        base_mean: The mean embedding of the base classes' images, ``[D]``, which ``cl2n`` needs.

    Returns:
        Embeddings ``[N, D]``.

    Raises:
        ValueError: If there is no such normalisation, or it lacks the mean.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}"
        )
    if normalization == "un":
        return embeddings
    if normalization == "cl2n":
        if base_mean is None:
            raise ValueError(
                "normalization='cl2n' needs base_mean, the base images' mean embedding"
            )
        embeddings = embeddings - base_mean
    return F.normalize(embeddings, dim=1)


@torch.inference_mode()
def correct_queries(
    embeddings: Tensor, episodes: Episodes, classifier: str, title: str = "episodes"
) -> Tensor:
    """Counts the queries of each episode that a classifier puts into their own way.

    Args:
        embeddings: Of all images that the episodes are drawn from, ``[N, D]``.
        episodes: E episodes of W ways and Q queries each.
        classifier: A name in :data:`CLASSIFIERS`.
        title: What the progress bar says.

    Returns:
        The counts ``[E]``, integers from 0 to W·Q, on the CPU.

    Raises:
        ValueError: If there is no such classifier, or an embedding is not finite.
    """
    if classifier not in CLASSIFIERS:
        raise ValueError(f"classifier must be one of {', '.join(CLASSIFIERS)}, got {classifier!r}")
    broken = int((~embeddings.isfinite()).any(dim=1).sum())
    if broken:
        raise ValueError(
            f"embeddings must be finite, {broken} of {len(embeddings)} are not: the network has "
            "diverged"
        )
    ways = episodes.query.shape[1]
    images = ways * (episodes.support.shape[2] + episodes.query.shape[2])
    bytes_an_episode = images * embeddings.shape[1] * embeddings.element_size()
    size = max(1, _CHUNK_BYTES // bytes_an_episode)
    own = torch.arange(ways, device=embeddings.device).view(-1, 1)
    counts = []
    with tqdm(total=len(episodes.query), desc=title, leave=False, disable=None) as progress:
        for support, query in zip(
            episodes.support.split(size), episodes.query.split(size), strict=True
        ):
            scores = CLASSIFIERS[classifier](
                *(embeddings[indices.to(embeddings.device)] for indices in (support, query))
            )
            counts.append((scores.argmax(dim=3) == own).sum(dim=(1, 2)).cpu())
            progress.update(len(query))
    return torch.cat(counts)


def accuracy(correct: Tensor, total: int) -> tuple[float, float]:
    """Gives the mean accuracy over episodes, with its 95 % interval.

    Args:
        correct: Correctly classified queries of each episode, ``[E]``.
        total: Queries of an episode: ways times queries of a class.

    Returns:
        The mean in percent, and the half-width of Student's interval over episodes, in points.

    Raises:
        ValueError: If there are fewer than two episodes.
    """
    if len(correct) < 2:
        raise ValueError(f"an interval takes at least two episodes, got {len(correct)}")
    shares = 100 * correct.double() / total
    error = shares.std().item() / math.sqrt(len(shares))
    return shares.mean().item(), half_width(error, len(shares))
