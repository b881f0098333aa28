import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from learn2learn.nn import SVClassifier
from sklearn.linear_model import LogisticRegression

import fewshot.config
from fewshot.classifiers import CLASSIFIERS

WAYS, QUERIES = 5, 15
SHOTS = pytest.mark.parametrize("shots", [1, 5])
ALL = pytest.mark.parametrize("name", ["centroid", "cosine", "svm", "logistic"])


def embedded(shots, episodes=20, size=64, scale=1.0, seed=0, queries=QUERIES):
    """Embeddings as after a ReLU, of classes that overlap."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(episodes, WAYS, 1, size, generator=generator)
    shape = (episodes, WAYS, shots + queries, size)
    images = scale * (centres + 2 * torch.randn(shape, generator=generator) + 1).relu()
    return images[:, :, :shots], images[:, :, shots:]


def closest(scores, by):
    """Predictions, and whether the best score leads the next by a share of the largest."""
    first, second = scores.topk(2, dim=-1).values.unbind(-1)
    return scores.argmax(-1), first - second > by * scores.abs().amax()


def test_all_are_registered():
    assert tuple(CLASSIFIERS) == fewshot.config.CLASSIFIERS


@SHOTS
@pytest.mark.parametrize("name", ["centroid", "cosine"])
def test_nearest_centroid_is_numpys(name, shots):
    support, query = embedded(shots)
    scores = CLASSIFIERS[name](support, query)
    for episode in range(len(support)):
        means = support[episode].double().numpy().mean(axis=1)
        images = query[episode].double().numpy()[:, :, None]
        if name == "centroid":
            expected = -((images - means) ** 2).sum(axis=3)
        else:
            lengths = np.linalg.norm(images, axis=3) * np.linalg.norm(means, axis=1)
            expected = (images * means).sum(axis=3) / lengths
        np.testing.assert_allclose(scores[episode].numpy(), expected, rtol=1e-4, atol=1e-5)
        assert np.array_equal(scores[episode].argmax(dim=2), expected.argmax(axis=2))


def learn2learns_svm(support, query, **settings):
    labels = torch.arange(WAYS).repeat_interleave(support.shape[2])
    scores = [
        SVClassifier(own.flatten(0, 1), labels, **settings)(other.flatten(0, 1))
        for own, other in zip(support, query, strict=True)
    ]
    return torch.stack(scores).view(*query.shape[:3], WAYS)


@SHOTS
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_the_svm_is_learn2learns(shots, scale, request):
    """In float64 and solved to the end: by default learn2learn's rounds, and stops at 15 steps."""
    support, query = embedded(shots, episodes=6, scale=scale)
    scores = CLASSIFIERS["svm"](support, query)
    # It takes the default type for its own tensors.
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    exact = learn2learns_svm(support.double(), query.double(), max_iters=40)
    assert (scores - exact).abs().max() < 1e-4 * exact.abs().max()
    predicted, clear = closest(exact, 2e-4)
    assert torch.equal(scores.argmax(dim=3)[clear], predicted[clear])
    assert clear.float().mean() > 0.99


@SHOTS
def test_the_svm_predicts_as_learn2learns_does_by_default(shots):
    support, query = embedded(shots, episodes=6)
    predicted = learn2learns_svm(support, query).argmax(dim=3)
    same = CLASSIFIERS["svm"](support, query).argmax(dim=3) == predicted
    assert same.float().mean() > 0.98


@SHOTS
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_logistic_regression_is_scikit_learns(shots, scale):
    size = 3 * WAYS
    support, query = embedded(shots, episodes=5, size=size, scale=scale)
    scores = CLASSIFIERS["logistic"](support, query)
    # Scores are linear in the query: those of the unit vectors and of 0 tell the coefficients.
    units = torch.eye(size).view(1, WAYS, 3, size).expand(5, -1, -1, -1)
    offset = CLASSIFIERS["logistic"](support, torch.zeros(5, WAYS, 1, size))[:, 0, 0]
    vectors = CLASSIFIERS["logistic"](support, units).view(5, size, WAYS) - offset.unsqueeze(1)
    labels = np.arange(WAYS).repeat(shots)
    for episode in range(5):
        images = support[episode].flatten(0, 1).double().numpy()
        theirs = LogisticRegression(C=1, tol=1e-10, max_iter=100_000).fit(images, labels)
        queries = query[episode].flatten(0, 1).double().numpy()
        assert np.array_equal(scores[episode].argmax(2).flatten(), theirs.predict(queries))

        def loss(vectors, offset, images=images):
            logits = torch.from_numpy(images @ vectors + offset)
            likelihood = F.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")
            return (vectors**2).sum() / 2 + likelihood.item()

        ours = loss(vectors[episode].numpy(), offset[episode].numpy())
        assert ours == pytest.approx(loss(theirs.coef_.T, theirs.intercept_), rel=1e-4, abs=1e-4)


@ALL
@settings(max_examples=15, deadline=None)
@given(
    shots=st.integers(1, 4),
    seed=st.integers(0, 2**30),
    order=st.permutations(range(WAYS)),
    scale=st.sampled_from([0.01, 1.0, 10.0]),
)
def test_permuting_the_ways_permutes_the_scores(name, shots, seed, order, scale):
    support, query = (
        values.double() for values in embedded(shots, 3, 8, scale, seed=seed, queries=2)
    )
    scores = CLASSIFIERS[name](support, query)
    permuted = CLASSIFIERS[name](support[:, order], query[:, order])
    error = (permuted - scores[:, order][..., order]).abs().max()
    assert error < 1e-4 * scores.abs().max()


@settings(max_examples=15, deadline=None)
@given(shots=st.integers(1, 4), seed=st.integers(0, 2**30))
def test_a_constant_vector_does_not_move_the_nearest_centroid(shots, seed):
    support, query = (values.double() for values in embedded(shots, 3, 8, seed=seed, queries=2))
    shift = 5 * torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved = CLASSIFIERS["centroid"](support + shift, query + shift)
    torch.testing.assert_close(moved, CLASSIFIERS["centroid"](support, query))


@ALL
@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("case", ["zero", "equal", "one zero", "tiny", "huge", "one number"])
def test_degenerate_embeddings_have_finite_scores(name, shots, case):
    support, query = embedded(shots, episodes=4, size=1 if case == "one number" else 6)
    support, query = support.clone(), query.clone()
    if case == "zero":
        support, query = 0 * support, 0 * query
    elif case == "equal":
        support, query = torch.ones_like(support), torch.ones_like(query)
    elif case == "one zero":
        support[:, 0], query[:, 1] = 0, 0
    elif case in ("tiny", "huge"):
        factor = 1e-12 if case == "tiny" else 1e4
        support, query = factor * support, factor * query
    scores = CLASSIFIERS[name](support, query)
    assert scores.shape == (4, WAYS, QUERIES, WAYS)
    assert scores.isfinite().all()
