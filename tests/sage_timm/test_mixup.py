import copy
import inspect
import pickle

import numpy as np
import pytest
import timm
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.utils import random_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from sage_timm import SageMixup, best_translation, blend, random_translations, saliency
from sage_timm.mixup import SoftTargetCrossEntropy

MODES = ["batch", "pair", "elem"]


def by_timm(x, y, seed=0, **kwargs):
    random_seed(seed)
    mixup_fn = Mixup(num_classes=5, **kwargs)
    return mixup_fn(x.clone(), y)


def by_sage(x, y, model=None, seed=0, lambda_max=1.0, **kwargs):
    """With timm's own weights, unless ``lambda_max`` scales them."""
    random_seed(seed)
    mixup_fn = SageMixup(num_classes=5, model=model, lambda_max=lambda_max, **kwargs)
    return mixup_fn(x.clone(), y)


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype


def test_is_timms_mixup_with_its_signature_first():
    assert isinstance(SageMixup(), Mixup)
    timms = list(inspect.signature(Mixup.__init__).parameters.values())
    ours = list(inspect.signature(SageMixup.__init__).parameters.values())
    for wanted, got in zip(timms, ours[: len(timms)], strict=True):
        assert (got.name, got.default, got.kind) == (wanted.name, wanted.default, wanted.kind)
    assert all(p.kind == p.KEYWORD_ONLY for p in ours[len(timms) :])
    positional = [0.3, 0.2, None, 0.9, 0.4, "elem", False, 0.05, 7, False]
    theirs = vars(Mixup(*positional))
    assert {name: vars(SageMixup(*positional))[name] for name in theirs} == theirs


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "kwargs",
    [
        {"prob": 0.0},
        {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
        {"mixup_alpha": 0.0, "cutmix_minmax": (0.2, 0.8)},
        {"cutmix_alpha": 0.7, "switch_prob": 1.0},
        {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "prob": 0.5, "label_smoothing": 0.0},
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_timm_where_sage_is_not_drawn(batch, mode, kwargs, seed):
    x, y = batch()
    assert_equal(
        by_sage(x, y, seed=seed, mode=mode, **kwargs), by_timm(x, y, seed, mode=mode, **kwargs)
    )


@pytest.mark.parametrize("mode", MODES)
def test_equals_timm_when_disabled(batch, small_net, mode):
    x, y = batch()
    results = []
    for mixup_fn in (Mixup(num_classes=5, mode=mode), SageMixup(num_classes=5, mode=mode)):
        mixup_fn.mixup_enabled = False
        random_seed(0)
        results.append(mixup_fn(x.clone(), y))
    assert_equal(*results)
    assert torch.equal(results[1][0], x)


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_the_elements_that_draw_cutmix_equal_timms(batch, small_net, mode):
    x, y = batch(count=16)
    kwargs = {"mode": mode, "cutmix_alpha": 1.0}
    timms, ours = by_timm(x, y, **kwargs), by_sage(x, y, small_net(), **kwargs)
    same = [i for i in range(16) if torch.equal(timms[0][i], ours[0][i])]
    random_seed(0)
    drawn = 8 if mode == "pair" else 16
    _, use_cutmix = Mixup(num_classes=5, **kwargs)._params_per_elem(drawn)
    expected = np.concatenate((use_cutmix, use_cutmix[::-1])) if mode == "pair" else use_cutmix
    assert 0 < expected.sum() < 16
    assert same == np.flatnonzero(expected).tolist()
    assert torch.equal(timms[1][same], ours[1][same])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("search", ["all", "random", "none"])
def test_composes_the_public_functions_with_timms_weights(batch, small_net, mode, search):
    """The whole of Sec. 3 for each pair, with the weights and the translations drawn again."""
    x, y = batch(dtype=torch.float64)
    model = small_net(dtype=torch.float64)
    kwargs = {"mixup_alpha": 0.8, "mode": mode}
    options = {"lambda_max": 0.7, "search": search, "search_fraction": 0.1}
    mixed, targets = by_sage(x, y, model, seed=3, **kwargs, **options)

    random_seed(3)
    timm_mixup = Mixup(num_classes=5, **kwargs)
    if mode == "batch":
        lam = np.full(6, timm_mixup._params_per_batch()[0])
    else:
        lam = timm_mixup._params_per_elem(3 if mode == "pair" else 6)[0].astype(np.float64)
        lam = np.concatenate((lam, lam[::-1])) if mode == "pair" else lam
    candidates = {
        "all": None,
        "random": random_translations(12, 9, 0.1),
        "none": torch.zeros(1, 2, dtype=torch.int64),
    }[search]
    clean = mixup_target(y, 5, 1.0, 0.1)
    maps = saliency(model, x, clean, SoftTargetCrossEntropy())
    weight = 0.7 * torch.from_numpy(lam).view(-1, 1, 1, 1)
    own, other = weight * maps, (1 - weight) * maps.flip(0)
    translation = best_translation(own, other, candidates)
    expected, mask, _ = blend(x, x.flip(0), own, other, translation)
    gamma = mask.mean(dim=(1, 2, 3))[:, None]
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(targets, (gamma * clean + (1 - gamma) * clean.flip(0)).to(targets))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("cutmix_alpha", [0.0, 1.0])
def test_odd_batches(batch, small_net, mode, count, cutmix_alpha):
    x, y = batch(count=count)
    model = small_net()
    for seed in range(4):
        mixed, targets = by_sage(x, y, model, seed, mode=mode, cutmix_alpha=cutmix_alpha)
        assert mixed.shape == x.shape
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(count))
        if count % 2:  # the middle image is its own partner
            assert torch.equal(mixed[count // 2], x[count // 2])
            middle = mixup_target(y, 5, 1.0, 0.1)[count // 2]
            torch.testing.assert_close(targets[count // 2], middle)
        if count > 2 and not cutmix_alpha:
            assert not torch.equal(mixed[0], x[0])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(32, 32), (5, 31), (24, 8)])
def test_any_channels_and_sizes(batch, small_net, channels, size):
    x, y = batch(channels=channels, height=size[0], width=size[1])
    mixed, targets = by_sage(x, y, small_net(channels=channels))
    assert mixed.shape == x.shape
    assert mixed.isfinite().all()
    # Every pixel lies between the smallest and the largest of both images, channel by channel.
    low, high = (getattr(torch.stack((x, x.flip(0))), f)((0, 3, 4)) for f in ("amin", "amax"))
    inside = (mixed >= low[:, :, None, None] - 1e-5) & (mixed <= high[:, :, None, None] + 1e-5)
    assert inside.all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))


@pytest.mark.parametrize("update_ratio", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_under_autocast(batch, small_net, dtype, update_ratio):
    x, y = batch()
    model = small_net()
    expected, _ = by_sage(x, y, model)
    with torch.autocast("cpu", dtype=dtype):
        mixed, targets = by_sage(x, y, model, update_ratio=update_ratio)
        loss = SoftTargetCrossEntropy()(model(mixed), targets)
    loss.backward()
    assert mixed.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters())
    # The same saliency but for rounding: as near to float32's mix as a few per cent of the range.
    assert (mixed - expected).abs().median() < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_type_and_memory_format_stay(batch, small_net, dtype, channels_last):
    form = torch.channels_last if channels_last else torch.contiguous_format
    x, y = batch(dtype=dtype)
    mixed, targets = by_sage(
        x.contiguous(memory_format=form), y, small_net(dtype=dtype), mode="elem", cutmix_alpha=1.0
    )
    assert mixed.dtype == dtype
    assert mixed.is_contiguous(memory_format=form)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6).to(targets), rtol=0, atol=4e-3)


def test_constant_images(batch, small_net):
    _, y = batch()
    x = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 12, 9).contiguous()
    mixed, targets = by_sage(x, y, small_net())
    assert mixed.isfinite().all()
    assert (mixed >= 0).all()
    assert (mixed <= 5).all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index, value):
        ctx.index, ctx.value = index, value
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[ctx.index] = ctx.value
        return gradient, None, None


class _WithBadGradient(nn.Module):
    def __init__(self, model, index, value):
        super().__init__()
        self.model, self.index, self.value = model, index, value

    def forward(self, x):
        return self.model(_BadGradient.apply(x, self.index, self.value))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
@pytest.mark.parametrize("size", [None, 5])
def test_a_pair_without_a_usable_gradient_gets_plain_mixup(batch, small_net, mode, bad, size):
    x, y = batch()
    model = small_net()
    good = by_sage(x, y, model, mode=mode, saliency_size=size)
    got = by_sage(x, y, _WithBadGradient(model, 1, bad), mode=mode, saliency_size=size)
    plain = by_timm(x, y, mode=mode)
    for index in range(6):
        expected = plain if index in (1, 4) else good
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a[index], b[index], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(good[0][1], plain[0][1], atol=1e-3)


def test_a_network_that_is_nothing_but_nan_gives_plain_mixup(batch, small_net):
    x, y = batch()
    model = small_net()
    nn.init.constant_(model.head.weight, torch.nan)
    for a, b in zip(by_sage(x, y, model), by_timm(x, y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["batch", "pair"])
def test_a_share_of_the_batch_is_mixed_as_if_it_were_alone(batch, small_net, mode):
    """The pairs at the two ends of the batch; those between get plain mixup."""
    x, y = batch(count=10)
    model = small_net()
    kwargs = {"mode": mode, "saliency_fraction": 0.6, "search": "all"}
    mixed, targets = by_sage(x, y, model, **kwargs)
    ends, rest = [0, 1, 2, 7, 8, 9], [3, 4, 5, 6]
    # The weights are drawn from the first pair inwards, so that the same ones are drawn again.
    alone = by_sage(x[ends], y[ends], model, mode=mode, search="all")
    torch.testing.assert_close(mixed[ends], alone[0])
    torch.testing.assert_close(targets[ends], alone[1])
    plain = by_timm(x, y, mode=mode)
    torch.testing.assert_close(mixed[rest], plain[0][rest], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(targets[rest], plain[1][rest], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed[ends], plain[0][ends], atol=1e-3)


@pytest.mark.parametrize(
    "cheaper",
    [{"saliency_size": 6}, {"saliency_dtype": torch.bfloat16}],
)
def test_mixes_by_the_cheaper_maps(batch, small_net, cheaper):
    x, y = batch()
    model = small_net()
    np.random.seed(3)
    lam = Mixup(num_classes=5)._params_per_batch()[0]
    mixed, _ = by_sage(x, y, model, seed=3, search="all", **cheaper)
    options = {name.removeprefix("saliency_"): value for name, value in cheaper.items()}
    clean = mixup_target(y, 5, 1.0, 0.1)
    maps = saliency(model, x, clean, SoftTargetCrossEntropy(), **options)
    own, other = lam * maps, (1 - lam) * maps.flip(0)
    expected, _, _ = blend(x, x.flip(0), own, other, best_translation(own, other))
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("update_ratio", [1.0, 0.6])
def test_the_same_seed_gives_the_same_bits(batch, small_net, update_ratio):
    x, y = batch()
    model = small_net()
    kwargs = {"mode": "elem", "cutmix_alpha": 1.0, "update_ratio": update_ratio}
    assert_equal(by_sage(x, y, model, 5, **kwargs), by_sage(x, y, model, 5, **kwargs))
    one, other = (by_sage(x, y, model, seed, **kwargs)[0] for seed in (5, 6))
    assert not torch.equal(one, other)


def test_a_generator_draws_the_translations(batch, small_net):
    x, y = batch()
    model = small_net()
    results = []
    for torch_seed in (1, 2):
        np.random.seed(0)
        torch.manual_seed(torch_seed)
        generator = torch.Generator().manual_seed(7)
        results.append(
            SageMixup(num_classes=5, model=model, search="random", generator=generator)(
                x.clone(), y
            )
        )
    assert_equal(*results)


def test_dense_multi_label_targets(batch, small_net):
    x, _ = batch()
    dense = torch.randint(2, (6, 5)).float()
    random_seed(0)
    mixup_fn = SageMixup(num_classes=5, multi_label=True, label_smoothing=0.0, model=small_net())
    mixed, targets = mixup_fn(x.clone(), dense)
    assert not torch.equal(mixed, x)
    assert ((targets >= 0) & (targets <= 1)).all()
    both = dense.bool() & dense.flip(0).bool()
    torch.testing.assert_close(targets[both], torch.ones(int(both.sum())))


def test_works_with_a_timm_model(batch):
    model = timm.create_model("resnet10t", num_classes=5)
    mixed, targets = by_sage(*batch(height=64, width=48), model)
    assert mixed.isfinite().all()
    assert targets.shape == (6, 5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prob", [1.0, 0.5])
def test_a_weight_of_1_from_beta_is_mixed_and_not_drawn_is_not(batch, small_net, mode, prob):
    """Beta(0.02, 0.02) draws 0 or 1 as good as always; only ``prob`` says whether to mix."""
    x, y = batch()
    kwargs = {"mixup_alpha": 0.02, "prob": prob, "mode": mode}
    counts = []
    for seed in range(30):
        mixed, _ = by_sage(x, y, small_net(), seed, lambda_max=0.5, **kwargs)
        np.random.seed(seed)
        if mode == "batch":
            drawn = [np.random.rand() < prob] * 6
        else:
            np.random.beta(0.02, 0.02, size=3 if mode == "pair" else 6)
            drawn = np.random.rand(3 if mode == "pair" else 6) < prob
            drawn = [*drawn, *drawn[::-1]] if mode == "pair" else drawn
        assert [not torch.equal(a, b) for a, b in zip(mixed, x, strict=True)] == list(drawn)
        counts += list(drawn)
    assert set(counts) == ({True} if prob == 1 else {True, False})


@pytest.mark.parametrize("make", [list, np.array, lambda y: torch.tensor(y, dtype=torch.uint16),
    lambda y: torch.tensor(y)[:, None], lambda y: np.array(y, np.uint16)])  # fmt: skip
def test_labels_of_other_kinds_are_taken(batch, small_net, make):
    x, y = batch()
    random_seed(0)
    got = SageMixup(num_classes=5, model=small_net(), lambda_max=1.0)(x.clone(), make(y.tolist()))
    assert_equal(got, by_sage(x, y, small_net()))


def test_its_settings_are_in_its_repr(small_net):
    said = repr(SageMixup(0.8, prob=0.9, num_classes=7, model=small_net(), lambda_max=0.6))
    for setting in ("mixup_alpha=0.8", "prob=0.9", "num_classes=7", "lambda_max=0.6"):
        assert setting in said
    assert "model=SmallNet" in said


def test_a_pickle_leaves_the_model_out_and_a_copy_shares_it(batch, small_net):
    model = small_net()
    mixup_fn = SageMixup(num_classes=5, model=model, lambda_max=1.0, update_ratio=0.5)
    expected = by_sage(*batch(), small_net())
    mixup_fn(*batch())  # a share waits
    pickled = pickle.dumps(mixup_fn)
    assert len(pickled) < 4000
    unpickled, copied = pickle.loads(pickled), copy.deepcopy(mixup_fn)
    with pytest.raises(RuntimeError, match=r"call attach\(model, loss_fn\)"):
        unpickled(*batch())
    for other in (unpickled.attach(model), copied):
        random_seed(0)
        assert_equal(other(batch()[0], batch()[1]), expected)
    assert copied.sage.model is model


def test_a_loss_that_was_given_is_kept(batch, small_net):
    """Wherever the model is attached."""

    def loss_fn(logits, targets):
        return (logits - targets).square().mean()

    kwargs = {"num_classes": 5, "loss_fn": loss_fn}
    ways = (
        SageMixup(**kwargs).attach(small_net()),
        SageMixup(**kwargs, model=small_net()),
        SageMixup(num_classes=5).attach(small_net(), loss_fn),
    )
    results = []
    for mixup_fn in ways:
        random_seed(0)
        results.append(mixup_fn(*batch()))
    assert_equal(results[0], results[1])
    assert_equal(results[0], results[2])
    random_seed(0)
    assert not torch.equal(results[0][0], SageMixup(num_classes=5, model=small_net())(*batch())[0])


class _MixesInItsCollate:
    def __init__(self, mixup_fn):
        self.mixup_fn = mixup_fn

    def __call__(self, items):
        return self.mixup_fn(*default_collate(items))


def test_a_loaders_worker_is_refused(batch, small_net):
    data = TensorDataset(*batch())
    collate = _MixesInItsCollate(SageMixup(num_classes=5, model=small_net()))
    next(iter(DataLoader(data, 4, collate_fn=collate)))
    loader = DataLoader(data, 4, collate_fn=collate, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(RuntimeError, match="cannot mix in a worker of a data loader"):
        next(iter(loader))


class TestBadInput:
    def test_no_model(self, batch):
        with pytest.raises(RuntimeError, match=r"call attach\(model, loss_fn\) before"):
            SageMixup(num_classes=5)(*batch())

    def test_not_a_model(self):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
            SageMixup().attach(lambda x: x)

    def test_uint8_images(self, batch, small_net):
        x, y = batch()
        with pytest.raises(TypeError, match=r"floating-point tensor, got torch.uint8; convert and"):
            SageMixup(num_classes=5, model=small_net())(x.to(torch.uint8), y)

    def test_not_a_batch_of_images(self, batch, small_net):
        x, y = batch()
        with pytest.raises(ValueError, match=r"x must be \[B, C, H, W\], got \(3, 12, 9\)"):
            SageMixup(num_classes=5, model=small_net())(x[0], y)

    @pytest.mark.parametrize("bad", [-1, 5])
    def test_targets_out_of_range(self, batch, small_net, bad):
        x, y = batch()
        y[2] = bad
        with pytest.raises(ValueError, match=r"target must be in \[0, 5\), got .* num_classes"):
            SageMixup(num_classes=5, model=small_net())(x, y)

    def test_targets_of_another_length(self, batch, small_net):
        x, y = batch()
        with pytest.raises(ValueError, match=r"target must be \(6,\), got \(5,\)"):
            SageMixup(num_classes=5, model=small_net())(x, y[:-1])

    def test_another_number_of_classes(self, batch, small_net):
        with pytest.raises(ValueError, match=r"must return logits \(6, 7\), got \(6, 5\); check"):
            SageMixup(num_classes=7, model=small_net())(*batch())

    def test_a_model_that_returns_a_tuple(self, batch, small_net):
        class Two(nn.Module):
            def forward(self, x):
                return x, x

        with pytest.raises(ValueError, match=r"must be one tensor .* got tuple; .* forward="):
            SageMixup(num_classes=5, model=Two())(*batch())

    def test_a_model_that_ignores_its_input(self, batch):
        class Fixed(nn.Module):
            def __init__(self):
                super().__init__()
                self.logits = nn.Parameter(torch.zeros(5))

            def forward(self, x):
                return self.logits.expand(len(x), -1)

        with pytest.raises(ValueError, match="passes no gradient from its output to its input"):
            SageMixup(num_classes=5, model=Fixed())(*batch())

    @pytest.mark.parametrize("update_ratio", [1.0, 0.5])
    def test_a_model_that_runs_without_gradients(self, batch, small_net, update_ratio):
        class NoGradient(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = small_net()

            @torch.no_grad()
            def forward(self, x):
                return self.net(x)

        with pytest.raises(ValueError, match="does it run under no_grad"):
            SageMixup(num_classes=5, model=NoGradient(), update_ratio=update_ratio)(*batch())

    def test_a_loss_that_is_not_reduced(self, batch, small_net):
        loss_fn = nn.CrossEntropyLoss(reduction="none")
        with pytest.raises(ValueError, match=r"must return a scalar tensor, got \(6,\)"):
            SageMixup(num_classes=5, model=small_net(), loss_fn=loss_fn)(*batch())

    @pytest.mark.parametrize(
        "name", ["lambda_max", "update_ratio", "saliency_fraction", "search_fraction"]
    )
    @pytest.mark.parametrize("value", [0.0, 1.1, float("nan")])
    def test_settings_out_of_range(self, name, value):
        with pytest.raises(ValueError, match=rf"{name} must be in \(0, 1\], got"):
            SageMixup(**{name: value})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"saliency_size": 0}, "saliency_size must be at least 1, got 0"),
            ({"saliency_size": 16, "update_ratio": 0.5}, "saliency_size=16 needs update_ratio=1"),
            ({"saliency_dtype": torch.int8}, "saliency_dtype must be .* got torch.int8"),
        ],
    )
    def test_settings_of_the_saliency(self, settings, message):
        with pytest.raises(ValueError, match=message):
            SageMixup(**settings)

    def test_a_shared_gradient_of_a_scripted_model(self, small_net, batch):
        model = torch.jit.script(small_net())
        with pytest.raises(ValueError, match=r"update_ratio=0\.5 needs a forward hook"):
            SageMixup(num_classes=5, model=model, update_ratio=0.5)
        expected = by_sage(*batch(), small_net())
        torch.testing.assert_close(by_sage(*batch(), model), expected)

    def test_an_unknown_search_or_mode(self):
        with pytest.raises(ValueError, match=r"search must be one of .* got 'best'"):
            SageMixup(search="best")
        with pytest.raises(ValueError, match="mode must be 'batch', 'pair' or 'elem', got 'half'"):
            SageMixup(mode="half")
