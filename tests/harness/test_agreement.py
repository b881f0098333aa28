import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from timm.data import resolve_data_config
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy

from harness.config import ScheduleConfig
from harness.data import DataConfig
from harness.glyphs import Glyphs
from harness.measures.agreement import measure_agreement, objective, table, variants
from harness.measures.pairs import mix_pairs
from harness.methods.base import MethodConfig, normalised
from harness.methods.sage import mixing_alone
from harness.run_config import RunConfig
from harness.store import read_results
from harness.train import load_model, train
from sage_timm import best_translation, random_translations, saliency
from tests import oracles

CPU = torch.device("cpu")
SIZE = 10
TINY = RunConfig(
    "none",
    seed=0,
    data=DataConfig(train_size=100, image_size=SIZE, batch_size=10),
    schedule=ScheduleConfig(epochs=1),
    mixing=MethodConfig(lambda_max=0.8, search_fraction=0.1),
)
PAIRS = 30
EACH = {"search": "random", "search_fraction": 1.0}  # tries all translations in a loop


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, to be read only."""
    out = tmp_path_factory.mktemp("trained")
    train(TINY, out, CPU)
    return out


@pytest.fixture(scope="module")
def measured(trained):
    """The lines of all variants."""
    listed = variants(TINY, (6,), ("bfloat16", "float16"), (0.4,))
    lines = measure_agreement(TINY, listed, trained, PAIRS, CPU)
    assert read_results(trained / "agreement.jsonl") == lines
    return lines


@pytest.fixture
def maps_and_weights():
    """Maps ``[B, 1, H, W]`` that sum to 1, cheap ones like them, and weights, in float64."""
    generator = torch.Generator().manual_seed(0)
    full = torch.rand(4, 1, 5, 7, generator=generator, dtype=torch.float64) ** 4
    cheap = full * (1 + torch.rand(full.shape, generator=generator, dtype=torch.float64))
    full, cheap = (maps / maps.sum(dim=(2, 3), keepdim=True) for maps in (full, cheap))
    return full, cheap, torch.tensor([0.1, 0.4, 0.5, 0.9], dtype=torch.float64)


def pair(maps, lam, index):
    """The weighted maps ``[H, W]`` of an image and of its reverse."""
    own, other = maps[index, 0].numpy(), maps[len(maps) - 1 - index, 0].numpy()
    return lam[index].item() * own, (1 - lam[index].item()) * other


def best_by_loop(s0, s1):
    return max(oracles.all_translations(*s0.shape), key=lambda t: oracles.objective(s0, s1, t))


def mixes_by(maps, lam, **search):
    """SAGE's mixes of pairs whose saliency is given."""
    sage = mixing_alone(MethodConfig(lambda_max=1.0, **search))
    sage.saliency = lambda _images, _targets: maps
    return mix_pairs(sage, torch.zeros(4, 3, 5, 7, dtype=torch.float64), torch.zeros(4, 1), lam)


def test_the_full_method_finds_what_a_loop_over_all_translations_finds(maps_and_weights):
    full, _, lam = maps_and_weights
    mix = mixes_by(full, lam, **EACH)
    reached = objective(full, lam, mix)
    for index in range(4):
        s0, s1 = pair(full, lam, index)
        best = best_by_loop(s0, s1)
        assert tuple(mix.translation[index].tolist()) == best
        assert reached[index].item() == pytest.approx(oracles.objective(s0, s1, best), abs=1e-12)


@pytest.mark.parametrize("search", [EACH, {"search": "none"}])
def test_cheap_maps_decide_translation_and_mask_and_full_maps_judge(maps_and_weights, search):
    full, cheap, lam = maps_and_weights
    mix = mixes_by(cheap, lam, **search)
    reached = objective(full, lam, mix)
    for index in range(4):
        cheap0, cheap1 = pair(cheap, lam, index)
        best = best_by_loop(cheap0, cheap1) if search is EACH else (0, 0)
        assert tuple(mix.translation[index].tolist()) == best
        mask = oracles.mask(cheap0, cheap1, best)
        s0, s1 = pair(full, lam, index)
        expected = (mask * s0 + (1 - mask) * oracles.translate(s1, best)).sum()
        assert reached[index].item() == pytest.approx(expected, abs=1e-12)


def test_a_pair_with_a_uniform_map_gets_plain_mixup(maps_and_weights):
    full, cheap, lam = maps_and_weights
    cheap[0] = 1 / 35
    mix = mixes_by(cheap, lam, **EACH)
    assert mix.translation[[0, 3]].tolist() == [[0, 0], [0, 0]]
    assert (mix.translation[1:3] != 0).any()
    reached = objective(full, lam, mix)
    for index in (0, 3):
        s0, s1 = pair(full, lam, index)
        weight = lam[index].item()
        expected = (weight * s0 + (1 - weight) * s1).sum()
        assert reached[index].item() == pytest.approx(expected, rel=1e-5)  # zeta


def test_each_search_and_each_cheaper_map_has_a_line(measured):
    settings = [
        (line["search"], line["saliency_size"], line["saliency_dtype"], line["saliency_fraction"])
        for line in measured
    ]
    assert settings == [
        ("all", None, None, 1.0),
        ("random", None, None, 1.0),
        ("none", None, None, 1.0),
        ("all", 6, None, 1.0),
        ("all", None, "bfloat16", 1.0),
        ("all", None, "float16", 1.0),
        ("all", None, None, 0.4),
    ]
    for line in measured:
        assert (line["seed"], line["pairs"], line["config"]) == (0, PAIRS, TINY.identity())


def test_no_search_reaches_more_than_the_best_of_all_translations(measured):
    for line in measured[:3]:
        assert line["rank_correlation"] == pytest.approx(1, abs=1e-6)
        assert line["worst"]["rank_correlation"] == pytest.approx(1, abs=1e-6)
    full, random, none = (line["objective_reached"] for line in measured[:3])
    assert none < full <= 1 + 1e-6
    assert random < full
    assert full > 0.99


@pytest.fixture(scope="module")
def pairs_in_float64(trained):
    """The network, and of each batch the images, targets, weights, full maps and best mixes."""
    random = np.random.default_rng(0)
    glyphs = Glyphs("validation", 200, SIZE)
    chosen = random.choice(200, PAIRS, replace=False)
    weights = 0.8 * random.uniform(0.05, 0.95, PAIRS)
    model = load_model(TINY, trained, len(glyphs.classes), CPU).train()
    data_config = resolve_data_config({}, model=model)
    pixels = torch.from_numpy(glyphs.images[chosen]).permute(0, 3, 1, 2)
    # In the loader's layout: bfloat16 rounds otherwise in another.
    images = normalised(pixels.contiguous(), data_config["mean"], data_config["std"])
    targets = mixup_target(torch.tensor(glyphs.targets)[chosen], len(glyphs.classes))
    batches = []
    for x, y, lam in zip(
        images.split(10), targets.split(10), torch.from_numpy(weights).split(10), strict=True
    ):
        maps = saliency(model, x, y, SoftTargetCrossEntropy())
        own = [pair(maps.double(), lam, index) for index in range(10)]
        best = [best_by_loop(*two) for two in own]
        batches.append((x, y, lam, maps, own, best))
    return model, batches


def test_figures_of_the_random_search_are_those_of_the_oracle(measured, pairs_in_float64):
    generator = torch.Generator().manual_seed(0)
    means, least, same = [], 1, []
    for _, _, _, _, own, best in pairs_in_float64[1]:
        candidates = random_translations(SIZE, SIZE, 0.1, generator).tolist()  # anew each time
        values = []
        for two, t in zip(own, best, strict=True):
            drawn = max(candidates, key=lambda c, two=two: oracles.objective(*two, c))
            values.append(oracles.objective(*two, drawn) / oracles.objective(*two, t))
            same.append(tuple(drawn) == t)
        means.append(np.mean(values))
        least = min(least, *values)
    line = measured[1]
    assert line["objective_reached"] == pytest.approx(np.mean(means), abs=1e-5)
    assert line["worst"]["objective_reached"] == pytest.approx(least, abs=1e-5)
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert line["standard_error"]["objective_reached"] == pytest.approx(error, abs=1e-5)
    assert line["same_translation"] == pytest.approx(np.mean(same))


@pytest.mark.parametrize("row", [2, 3, 4, 6])
def test_figures_of_cheaper_maps_are_those_of_the_oracle(measured, pairs_in_float64, row):
    model, batches = pairs_in_float64
    line, loss = measured[row], SoftTargetCrossEntropy()
    ranks, reached, same = [], [], []
    for x, y, lam, maps, own, best in batches:
        ends = slice(0, 10)
        cheap = torch.full_like(maps, 1 / SIZE**2)
        dtype = None if line["saliency_dtype"] is None else torch.bfloat16
        if line["saliency_fraction"] < 1:
            ends = [0, 1, 8, 9]
        cheap[ends] = saliency(
            model, x[ends], y[ends], loss, size=line["saliency_size"], dtype=dtype
        )
        for index, (two, t) in enumerate(zip(own, best, strict=True)):
            computed = line["saliency_fraction"] == 1 or index in ends
            cheap_two = pair(cheap.double(), lam, index)
            found = (0, 0)
            if line["search"] == "all" and computed:
                weighted = (torch.from_numpy(m)[None, None].float() for m in cheap_two)
                found = tuple(best_translation(*weighted)[0].tolist())
            mask = oracles.mask(*cheap_two, found)
            value = (mask * two[0] + (1 - mask) * oracles.translate(two[1], found)).sum()
            reached.append(value / oracles.objective(*two, t))
            same.append(found == t)
            flat = (cheap[index].flatten().numpy(), maps[index].flatten().numpy())
            ranks.append(spearmanr(*flat).statistic if computed else 0.0)
    assert line["rank_correlation"] == pytest.approx(np.mean(ranks), abs=1e-5)
    assert line["worst"]["rank_correlation"] == pytest.approx(min(ranks), abs=1e-5)
    assert line["objective_reached"] == pytest.approx(np.mean(reached), abs=1e-5)
    assert line["worst"]["objective_reached"] == pytest.approx(min(reached), abs=1e-5)
    assert line["same_translation"] == pytest.approx(np.mean(same))


def test_what_stands_there_is_skipped_and_what_is_cut_off_goes_on(trained, measured, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "agreement.jsonl"
    listed = variants(TINY, (6,), (), ())
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[:2]) + kept[2][:40])
    assert measure_agreement(TINY, listed, tmp_path, PAIRS, CPU) == measured[:4]
    assert read_results(path) == measured[:4]
    measure_agreement(TINY, listed[:2], tmp_path, PAIRS, CPU)
    assert read_results(path) == measured[:4]
    measure_agreement(TINY, listed[2:3], tmp_path, 20, CPU)
    assert [line["pairs"] for line in read_results(path)] == [PAIRS] * 4 + [20]


def test_a_variant_that_is_asked_for_twice_is_measured_once():
    assert len(variants(TINY, (6, 6), (), (1.0,))) == 4


def test_the_network_is_trained_where_it_is_not_there(tmp_path):
    config = replace(TINY, seed=1)
    (line,) = measure_agreement(config, variants(config, (), (), ())[2:], tmp_path, 20, CPU)
    (result,) = read_results(tmp_path / "results.jsonl")
    assert result["config"] == line["config"] == config.identity()


def test_table_has_a_row_a_line(measured):
    rows = str(table(measured)).split("\n\n")[0].splitlines()
    assert len(rows) == 2 + len(measured)
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[:2] for row in cells[2:]] == [
        ["full", "all"],
        ["full", "random, 10 %"],
        ["full", "none"],
        ["6 pixels", "all"],
        ["bfloat16", "all"],
        ["float16", "all"],
        ["40 % of the batch", "all"],
    ]
    assert {len(row) for row in cells} == {7}
    line = measured[1]
    half = 4.302653 * line["standard_error"]["objective_reached"]  # Student's t, 2 degrees
    assert cells[3][4] == f"{line['objective_reached']:.4f} ± {half:.4f}"
    assert cells[3][5] == f"{line['worst']['objective_reached']:.4f}"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"sizes": (SIZE,)}, r"sizes must be below image_size=10, got 10"),
        ({"sizes": (0,)}, r"saliency_size must be at least 1, got 0"),
        ({"dtypes": ("float32",)}, r"saliency_dtype must be torch.float16, torch.bfloat16 or None"),
        ({"fractions": (1.5,)}, r"saliency_fraction must be in \(0, 1\], got 1.5"),
    ],
)
def test_bad_variants_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        variants(TINY, **{"sizes": (), "dtypes": (), "fractions": (), **change})


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        (25, "pairs must be a multiple of batch_size=10, at least 20, got 25"),
        (10, "pairs must be a multiple of batch_size=10, at least 20, got 10"),
        (210, "pairs=210 takes 210 images, the split has 200"),
    ],
)
def test_bad_numbers_of_pairs_are_refused_before_training(tmp_path, pairs, text):
    with pytest.raises(ValueError, match=text):
        measure_agreement(TINY, variants(TINY, (), (), ()), tmp_path, pairs, CPU)
    assert not list(tmp_path.iterdir())
