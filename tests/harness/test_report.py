import json
import math
import random
import re
from dataclasses import asdict
from statistics import mean, stdev

import pytest
from scipy.stats import t as student
from scipy.stats import ttest_rel

from harness.commands import Report
from harness.methods.base import MethodConfig
from harness.report import markdown, read, sections
from harness.run_config import RunConfig
from tests.report_inputs import (
    CONDITIONS,
    METHODS,
    benchmark,
    config,
    failure,
    report,
    result,
    robustness,
    table,
    write_all,
    write_benchmarks,
    write_lines,
)


def top1(text, title):
    """The column of top-1 of a table."""
    return {method: row["top-1, %"] for method, row in table(text, title).items()}


def test_means_and_spread_over_the_seeds_and_differences_seed_by_seed(tmp_path):
    results = [result("mixup", seed, 50.0 + 10 * seed) for seed in range(3)]
    results += [result("sage", seed, 51.0 + 11 * seed, step_ms=250.0 + seed) for seed in range(3)]
    results += [result("none", 0, 40.0, train_seconds=90)]
    text = report(tmp_path, results=results)
    assert "## glyphs, 1000 training images, 2000 to measure on, preactresnet8_cifar, 40" in text
    rows = table(text, "Accuracy and time")
    assert list(rows) == ["none", "mixup", "sage"]
    # By hand: 50, 60, 70 have mean 60 and deviation 10; 1, 2, 3 have mean 2 and deviation 1, and
    # t(0.975, 2) = 4.303, so that the interval is 2 ± 4.303 / sqrt(3).
    assert [rows[method]["top-1, %"] for method in rows] == [
        "40.00",
        "60.00 ± 10.00",
        "**62.00 ± 11.00**",
    ]
    assert "step, ms" not in rows["sage"]
    assert [rows[method]["training, min"] for method in rows] == ["1.5", "5.0 ± 0.0", "5.0 ± 0.0"]
    assert top1(text, "Accuracy less mixup's") == {
        "sage": "+2.00 (-0.48 to +4.48)"  # of no mixing there is but one seed
    }
    assert "less cutmix's" not in text
    assert (
        "- sage and mixup cannot be told apart: +2.00 points of top-1 (95 % interval -0.48 to "
        "+4.48 over 3 seeds).\n"
    ) in text
    assert "- sage less none: +11.00 points of top-1 (1 seed; fewer than 3 rank nothing).\n" in text
    assert "step takes" not in text  # of trainings that shared the machine


@pytest.mark.parametrize(
    ("gain", "verdict"), [(+3.0, "sage is ahead of cutmix"), (-3.0, "sage is behind cutmix")]
)
def test_ahead_or_behind_where_the_interval_leaves_out_zero(tmp_path, gain, verdict):
    results = [result("cutmix", seed, 50.0 + seed) for seed in range(3)]
    results += [result("sage", seed, 50.1 + 1.1 * seed + gain) for seed in range(3)]
    text = report(tmp_path, results=results)
    assert f"- {verdict}: {gain + 0.2:+.2f} points" in text
    assert "Holm" not in text  # of one comparison


def test_several_comparisons_are_corrected(tmp_path):
    """By hand: p-values by scipy's t, times 3 for the least, 2 for the next, 1 for the last."""
    apart = {
        "none": [2.0, 2.1, 1.9, 2.2, 1.8],
        "mixup": [1.0, 0.2, 1.5, 0.4, 1.3],
        "cutmix": [-1.0, 1.0, 0.5, -0.7, 0.1],
    }
    results = [result("sage", seed, 50.0 + seed) for seed in range(5)]
    results += [
        result(method, seed, 50.0 + seed - by)
        for method, differences in apart.items()
        for seed, by in enumerate(differences)
    ]
    p_values = {}
    for method, differences in apart.items():
        t = mean(differences) / (stdev(differences) / 5**0.5)
        p_values[method] = 2 * student.sf(abs(t), 4)
    assert 3 * p_values["none"] < 0.05
    assert p_values["mixup"] < 0.05 < 2 * p_values["mixup"]
    assert p_values["cutmix"] > 0.05
    lines = report(tmp_path, results=results).splitlines()
    answer, *found = [line for line in lines if line[:2] == "- "]
    assert answer == "- Of 3 methods, sage is ahead of 1 (none), level with 2 (mixup, cutmix)."
    after = "after Holm's correction for 3 comparisons)."
    assert [(line.split(":")[0], line.partition(" over 5 seeds")[2]) for line in found[:3]] == [
        ("- sage is ahead of none", f"; still so {after}"),
        ("- sage and mixup cannot be told apart", f"; it leaves out zero, but not {after}"),
        ("- sage and cutmix cannot be told apart", ")."),
    ]
    assert found[3:] == [
        "- Of several comparisons one may come out by chance: Holm's correction keeps the risk of "
        "any such verdict among these 3 below 5 %."
    ]


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_few_seeds_and_intervals_without_width_rank_nothing(tmp_path, seeds):
    results = [result("sage", seed, 60.0) for seed in range(seeds)]
    results += [
        result("mixup", seed, 50.0 + seed % 2 * 1e-3 * (seeds < 3)) for seed in range(seeds)
    ]
    (line,) = [line for line in report(tmp_path, results=results).splitlines() if line[:2] == "- "]
    why = {
        1: "1 seed; fewer than 3 rank nothing",
        2: "2 seeds; fewer than 3 rank nothing",
        3: "the same with each of 3 seeds, which leaves no interval to rank by",
    }
    assert line == f"- sage less mixup: +10.00 points of top-1 ({why[seeds]})."


def test_the_cost_is_that_of_the_benchmarks_of_the_same_network(tmp_path):
    """Not that of trainings, which may have shared their cores: here 9 times mixup's."""
    results = [result("mixup", seed, 50.0 + seed, step_ms=100.0) for seed in range(3)]
    results += [result("sage", seed, 51.0 + seed, step_ms=900.0) for seed in range(3)]
    results += [result("sage", s, 52.0 + s, config={"saliency_fraction": 0.5}) for s in range(3)]
    results += [result("none", seed, 40.0 + seed) for seed in range(3)]
    half = asdict(MethodConfig(saliency_fraction=0.5))

    def costs(*benchmarks):
        write_benchmarks(tmp_path / "overhead.json", benchmarks)
        lines = report(tmp_path, results=results).splitlines()
        said = [line[2:-1].partition(": ") for line in lines if line[:2] == "- "]
        return {pair: told.partition("; its step takes ")[2] for pair, _, told in said if told}

    own = {"mixing": asdict(MethodConfig(alpha=0.2))}  # which changes nothing of the cost
    mixup = benchmark("mixup", "step", 101.0, 1.01, **own)
    sage = benchmark("sage", "step", 222.2, 2.222, **own)
    assert costs(mixup, sage, benchmark("sage", "step", 140.0, 1.4, mixing=half)) == {
        "sage less none": "2.22 times as long",
        "sage less mixup": "2.20 times as long",
        "sage, saliency_fraction 0.5 less sage": "0.63 times as long",
    }
    own["image_size"] = 8
    small = (
        benchmark("mixup", "step", 5.0, 1.0, **own),
        benchmark("sage", "step", 15.0, 3.0, **own),
    )
    assert costs(mixup, sage, *small)["sage less mixup"] == "2.20 to 3.00 times as long"
    of_another = benchmark("sage", "step", 222.2, 2.222, model="resnet50", mixing=own["mixing"])
    assert {*costs(mixup, of_another).values()} == {""}
    assert {*costs(benchmark("sage", "mixing", 9.0), sage | {"extra_info": {}}).values()} == {""}


def test_every_measure_is_compared_as_scipys_paired_t_test_does(tmp_path):
    rng = random.Random(0)
    measured = {"top-1, %": "top1", "top-5, %": "top5", "NLL": "nll", "ECE, %": "ece"}
    results = [
        result(method, seed, **{name: rng.uniform(1, 50) for name in measured.values()})
        for method in ("none", "cutmix", "sage")
        for seed in range(5)
        if (method, seed) != ("none", 1)
    ]
    lines = [
        robustness(run["method"], run["seed"], kind, strength, rng.uniform(10, 50))
        for run in results
        for kind, strength in (("clean", 0.0), ("pgd", 2.0))
        if (run["method"], run["seed"]) != ("none", 3)
    ]

    def expected(method, seeds, values):
        own, other = ([values[name, seed] for seed in seeds] for name in (method, "cutmix"))
        low, high = ttest_rel(own, other).confidence_interval(0.95)
        return f"{mean(own) - mean(other):+.2f} ({low:+.2f} to {high:+.2f})"

    text = report(tmp_path, results=results, robustness=lines)
    rows = table(text, "Accuracy less cutmix's")
    assert rows["none"]["seeds"] == "0 2 3 4"
    for title, name in measured.items():
        values = {(run["method"], run["seed"]): run[name] for run in results}
        assert rows["none"][title] == expected("none", (0, 2, 3, 4), values)
        assert rows["sage"][title] == expected("sage", range(5), values)
    rows = table(text, "Robustness less cutmix's")
    assert rows["none"]["seeds"] == "0 2 4"
    for title, kind in (("clean", "clean"), ("pgd 2/255", "pgd")):
        values = {
            (line["method"], line["seed"]): line["top1"] for line in lines if line["kind"] == kind
        }
        assert rows["none"][title] == expected("none", (0, 2, 4), values)
        assert rows["sage"][title] == expected("sage", range(5), values)


def test_one_seed_tells_nothing_apart(tmp_path):
    text = report(tmp_path, results=[result("sage", 0, 55.0), result("mixup", 0, 50.0)])
    assert "less mixup's" not in text
    assert "- sage less mixup: +5.00 points of top-1 (1 seed; fewer than 3 rank nothing)." in text


def test_the_best_mean_of_each_column_is_bold(tmp_path):
    results = [
        result("none", 0, 50.0, top5=80.0, nll=1.0, ece=9.0),
        result("mixup", 0, 60.0, top5=70.0, nll=2.0, ece=3.0),
        result("sage", 0, 60.001, top5=75.0, nll=1.5, ece=5.0),
    ]
    text = report(tmp_path, results=results)
    rows = table(text, "Accuracy and time")
    cells = [(method, column) for method in rows for column in rows[method]]
    bold = {(method, column) for method, column in cells if "**" in rows[method][column]}
    assert bold == {
        ("mixup", "top-1, %"),  # as good as sage, as far as is shown
        ("sage", "top-1, %"),
        ("none", "top-5, %"),
        ("none", "NLL"),
        ("mixup", "ECE, %"),
    }


@pytest.mark.parametrize("older", [True, False])
def test_a_run_that_diverged_is_named_and_counts_for_nothing(tmp_path, older):
    """Older lines hold NaN, and nothing that says so."""
    bad = result("mixup", 3, 1.0, nll=math.nan if older else None)
    for figures in (bad["history"][0], bad["history"][30]):
        figures["train_loss"] = math.nan if older else None
    late = result("cutmix", 0, 1.0, **({"ece": math.inf} if older else {"diverged": True}))
    late["history"][35]["ece"] = math.inf if older else None
    if not older:
        bad["diverged"] = True
    results = [result(m, s, 50.0 + s) for m in ("mixup", "sage") for s in (0, 1, 2, 3)]
    results = [run for run in results if (run["method"], run["seed"]) != ("mixup", 3)]
    lines = [robustness(run["method"], run["seed"], "noise", 0.1, 40.0) for run in results]
    without = report(tmp_path, results=results, robustness=lines)
    lines += [robustness("mixup", 3, "noise", 0.1, 1.0)]
    text = report(tmp_path, results=[*results, bad, late], robustness=lines)
    rows, expected = (table(t, "Accuracy and time") for t in (text, without))
    assert rows["mixup"].pop("seeds") == "0 1 2, diverged 3"
    assert rows["cutmix"].pop("seeds") == "diverged 0, missing 1 2 3"
    assert {*rows["cutmix"].values()} == {"cutmix", "-"}
    del expected["mixup"]["seeds"]
    assert rows["mixup"] == expected["mixup"]
    assert table(text, "Robustness")["mixup"]["noise 0.1"] == "**40.00 ± 0.00**"
    for title in ("Accuracy less mixup's", "Robustness less mixup's"):
        assert table(text, title) == table(without, title)
    assert [line for line in text.splitlines() if line.startswith("- sage")] == [
        line for line in without.splitlines() if line.startswith("- sage")
    ]
    assert [line for line in text.splitlines() if "diverged:" in line] == [
        "- mixup, seed 3, diverged: training loss not finite in epoch 1",
        "- cutmix, seed 0, diverged: ECE not finite in epoch 36",
    ]


def test_where_all_runs_diverged_there_is_still_a_page(tmp_path):
    lines = [result(m, 0, nll=None, diverged=True) for m in ("none", "sage")]
    write_lines(tmp_path / "results.jsonl", lines)
    write_lines(tmp_path / "robustness.jsonl", [robustness("sage", 0, "noise", 0.1, 1.0)])
    Report((tmp_path,))()
    text = (tmp_path / "report.md").read_text()
    assert table(text, "Accuracy and time")["sage"]["seeds"] == "diverged 0"
    assert "Robustness" not in text


def test_unequal_classes_show_their_accuracies(tmp_path):
    """Each picture is called cat, which 91 of 100 are: top-1 is 91 %, and no dog is found."""
    names = ["cat", "d|og", "<b>"]
    results = [
        result(
            method, seed, 91.0, balanced=100 / 3 + gain, classes=names,
            class_accuracy=[100.0 - gain - seed, 3.0 * gain, None],
        )
        for method, gain in (("none", 0.0), ("sage", 1.0))
        for seed in (0, 1)
    ]  # fmt: skip
    text = report(tmp_path, results=results)
    rows = table(text, "Accuracy and time")
    assert rows["none"]["balanced accuracy, %"] == "33.33 ± 0.00"
    assert rows["sage"]["balanced accuracy, %"] == "**34.33 ± 0.00**"
    assert table(text, "Accuracy of each class") == {
        "cat": {"class": "cat", "none": "**99.5 ± 0.7**", "sage": "98.5 ± 0.7"},
        "d\\|og": {"class": "d\\|og", "none": "0.0 ± 0.0", "sage": "**3.0 ± 0.0**"},
        "&lt;b&gt;": {"class": "&lt;b&gt;", "none": "-", "sage": "-"},
    }


@pytest.mark.parametrize("count", [30, 31])
def test_classes_of_one_size_need_no_balance_and_many_no_table(tmp_path, count):
    classes = {"classes": [*map(str, range(count))], "class_accuracy": [50.0] * count}
    text = report(tmp_path, results=[result("none", 0, 50.0, balanced=50.00001, **classes)])
    assert "balanced" not in text
    assert ("### Accuracy of each class" in text) == (count <= 30)


def test_missing_and_failed_runs_are_shown(tmp_path):
    text = report(
        tmp_path,
        runs=[{"method": "puzzlemix", "seed": 0, "config": config("puzzlemix", 0)}],
        results=[
            *(result("none", seed) for seed in range(3)),
            *(result("mixup", seed) for seed in range(2)),
            result("sage", 0),
        ],
        failures=[
            failure("mixup", 1, "ValueError: since mended"),
            failure("mixup", 2, "ValueError: first"),
            failure("mixup", 2, "RuntimeError: out of\nmemory"),
            failure("cutmix", 1, "ValueError: no"),
        ],
    )
    rows = table(text, "Accuracy and time")
    assert {method: row["seeds"] for method, row in rows.items()} == {
        "none": "0 1 2",
        "mixup": "0 1, failed 2",
        "cutmix": "failed 1, missing 0 2",
        "puzzlemix": "missing 0 1 2",
        "sage": "0, missing 1 2",
    }
    for method in ("cutmix", "puzzlemix"):
        assert {*rows[method].values()} - {method, rows[method]["seeds"]} == {"-"}
    assert [line for line in text.splitlines() if "failed:" in line] == [
        "- mixup, seed 2, failed: RuntimeError: out of memory",
        "- cutmix, seed 1, failed: ValueError: no",
    ]


def test_failures_alone_make_a_report(tmp_path):
    text = report(tmp_path, failures=[failure("sage", 0, "ValueError: no")])
    assert table(text, "Accuracy and time")["sage"]["seeds"] == "failed 0"
    assert "## glyphs, 1000 training images, preactresnet8_cifar, 40 epochs\n" in text


def test_each_setting_has_a_table_of_its_own_that_says_what_it_is(tmp_path):
    other = result("none", 0, 1.0)
    other["config"]["channels_last"] = True
    results = [other, result("none", 0, 2.0), result("none", 0, 3.0, config={"dataset": "b"})]
    text = report(tmp_path, results=results)
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(titles) == len(set(titles)) == 3
    assert titles[1].endswith("40 epochs, channels_last False")
    assert titles[2].startswith("## b, 1000 training images")
    assert [part.split(" | ")[1] for part in text.split("| none ")[1:]] == ["1.00", "2.00", "3.00"]


def test_a_setting_that_is_younger_than_a_line_has_its_default(tmp_path):
    old, of_today = result("none", 0, 1.0), result("mixup", 0, 2.0)
    for name in ("mixing", "channels_last"):
        del old["config"][name]
    settings = asdict(RunConfig("mixup", 0))
    settings |= RunConfig.BEFORE  # what it was before there was a setting
    for name in RunConfig.PLACE:
        del settings["data"][name]
    for name in RunConfig.SOURCE:
        del settings[name]
    for name, value in settings.items():
        part = of_today["config"].setdefault(name, value)
        of_today["config"][name] = {**value, **part} if isinstance(value, dict) else part
    text = report(tmp_path, results=[old, json.loads(json.dumps(of_today))])
    assert text.count("\n## ") == 1
    assert [*table(text, "Accuracy and time")] == ["none", "mixup"]


def test_a_methods_own_settings_make_rows_beside_the_same_peers(tmp_path):
    """The defaults need not be told, wherever they stand; the peers of all rows are the same."""
    paper = {"lambda_max": 0.6, "update_ratio": 0.7}
    write_lines(
        tmp_path / "one" / "results.jsonl",
        [
            result("none", 0, 40.0),
            result("mixup", 0, 48.0, config={"alpha": 0.2}),
            result("mixup", 0, 50.0),
            result("sage", 0, 51.5, config={"alpha": 0.2}),
            result("sage", 1, 52.5, config={"alpha": 0.2}),
        ],
    )
    write_lines(
        tmp_path / "other" / "results.jsonl",
        [
            result("sage", 0, 53.0, config=paper),
            result("sage", 1, 54.0, config=paper),
            result("sage", 0, 52.0),
            result("sage", 1, 53.0),
            result("mixup", 1, 51.0, config=paper),
            result("sage-eval-saliency", 0, 51.0),
            result("none", 1, 41.0, config={"alpha": 0.2}),
        ],
    )
    text = markdown(sections(read([tmp_path / "one", tmp_path / "other"])), pictures=False)
    rows = table(text, "Accuracy and time")
    assert {method: row["seeds"] for method, row in rows.items()} == {
        "none": "0 1",
        "mixup, alpha 0.2": "0, missing 1",
        "mixup": "0 1",
        "sage, alpha 0.2": "0 1",
        "sage, lambda_max 0.6, update_ratio 0.7": "0 1",
        "sage": "0 1",
        "sage-eval-saliency": "0, missing 1",
    }
    assert top1(text, "Accuracy less mixup's") == {
        "none": "-10.00",
        "sage, alpha 0.2": "+1.50",
        "sage, lambda_max 0.6, update_ratio 0.7": "+3.00",
        "sage": "+2.00",
    }
    assert top1(text, "Accuracy less sage's") == {
        "none": "-12.00",
        "mixup": "-2.00",
        "sage, alpha 0.2": "-0.50",
        "sage, lambda_max 0.6, update_ratio 0.7": "+1.00",
    }
    said = [line.split(":")[0] for line in text.splitlines() if line.startswith("- ")]
    assert said == [
        "- sage less none",
        "- sage less mixup, alpha 0.2",
        "- sage less mixup",
        "- sage, alpha 0.2 less sage",
        "- sage, lambda_max 0.6, update_ratio 0.7 less sage",
        "- sage-eval-saliency less sage",
    ]


def test_of_two_settings_neither_the_default_the_first_stands_for_sage(tmp_path):
    settings = ({"search": "none"}, {"search": "random"})
    results = [
        result("sage", seed, 50.0 + i, config=own)
        for i, own in enumerate(settings)
        for seed in range(2)
    ]
    found = top1(report(tmp_path, results=results), "Accuracy less sage, search none's")
    assert found == {"sage, search random": "+1.00"}


def test_variants_are_compared_with_what_they_are_variants_of(tmp_path):
    base = {"update_ratio": 0.7}
    settings = ({}, {**base, "search": "none"}, {**base, "alpha": 0.2}, base)
    results = [
        result("sage", seed, 50.0 + i, config=own)
        for i, own in enumerate(settings)
        for seed in range(2)
    ]
    results += [result("sage-eval-saliency", seed, 49.0, config=base) for seed in range(2)]
    found = top1(report(tmp_path, results=results), "Accuracy less sage, update_ratio 0.7's")
    assert found == {
        "sage": "-3.00",
        "sage, update_ratio 0.7, search none": "-2.00",
        "sage, alpha 0.2, update_ratio 0.7": "-1.00",
        "sage-eval-saliency, update_ratio 0.7": "-4.00",
    }


def test_robustness(tmp_path):
    lines = [
        robustness("sage", seed, kind, strength, top1 + seed)
        for seed in (0, 1)
        for kind, strength, top1 in (("pgd", 8.0, 10.0), ("noise", 0.1, 30.0), ("clean", 0, 50.0))
    ]
    lines += [robustness("none", 0, "clean", 0, 0.0), robustness("none", 0, "clean", 0, 60.0)]
    results = [result(method, seed) for method in ("none", "sage") for seed in (0, 1)]
    rows = table(report(tmp_path, results=results, robustness=lines), "Robustness")
    assert rows["sage"] == {
        "method": "sage",
        "seeds": "0 1",
        "clean": "50.50 ± 0.71",
        "noise 0.1": "30.50 ± 0.71",
        "pgd 8/255": "10.50 ± 0.71",
    }
    # The later of two lines counts; a network that was not measured on everything says so.
    assert [*rows["none"].values()] == ["none", "in part 0, missing 1", "**60.00**", "-", "-"]


@pytest.mark.parametrize("told", [True, False])
def test_foreground(tmp_path, told):
    names = ("foreground_kept_0", "foreground_kept_1", "foreground_kept_least")
    lines = [
        {"method": method, "seed": seed, "pairs": 64}
        | dict.fromkeys(names, share + 2 * seed)
        | ({"config": config("none", seed)} if told else {})  # that of the network
        for method, share in (("mixup", 50.0), ("sage", 70.0))
        for seed in ((0, 1) if method == "sage" else (1,))
    ]
    results = [result(method, 0) for method in ("none", "sage")]
    text = report(tmp_path, results=results, foreground=lines)
    rows = table(text, "Foreground kept")
    assert [[*row.values()] for row in rows.values()] == [
        ["mixup", "1, missing 0", "52.00", "52.00", "52.00"],
        ["sage", "0 1", *["**71.00 ± 1.41**"] * 3],
    ]
    assert "mean over 64 pairs" in text
    assert text.count("\n## ") == (1 if told else 2)
    # Whose mixes were measured need not have been trained.
    rows = table(text, "Accuracy and time")
    assert {method: row["seeds"] for method, row in rows.items()} == {"none": "0", "sage": "0"}


def test_overhead(tmp_path):
    mixing = asdict(MethodConfig(search="random"))
    older = {k: v for k, v in mixing.items() if k != "saliency_size"}  # written before it was
    write_benchmarks(
        tmp_path / "overhead.json",
        [
            benchmark("sage", "step", 250.4, 2.5, 1.1, mixing=mixing),
            benchmark("sage", "saliency", 100.0, mixing=older),
            benchmark("sage", "mixing", 7.123, mixing=mixing),
            benchmark("sage", "step", 170.0, 1.7, mixing=asdict(MethodConfig(search="none"))),
            benchmark("none", "step", 100.0, 1.0, 1.0),
            benchmark("none", "step", 3.0, 1.0, device="cuda"),
            {"name": "another's", "stats": {}, "extra_info": {}},
        ],
    )
    text = report(tmp_path, results=[result("sage", 0)])
    setting = "preactresnet8_cifar, batch of 100, 32 × 32 pixels, channels last"
    rows = table(text, f"{setting}, cpu, 1 thread(s)")
    assert {method: [*row.values()][1:] for method, row in rows.items()} == {
        "none": ["1.00", "100", "-", "-", "1.00"],
        "sage, search random": ["2.50", "250", "100", "7.12", "1.10"],
        "sage, search none": ["1.70", "170", "-", "-", "-"],
    }
    assert f"### {setting}, cuda\n" in text


def test_hostile_text_is_no_markup(tmp_path):
    text = report(
        tmp_path,
        results=[result("none", 0, dataset="a&b|c <i>*d*</i>", device="`x` [y](z)")],
        failures=[failure("sage", 0, "ValueError: <script>alert(1)</script> | _x_ \\| a_b")],
    )
    assert "## a&amp;b\\|c &lt;i&gt;\\*d\\*&lt;/i&gt;, 1000 training images" in text
    assert "Trained on \\`x\\` \\[y\\](z), torch" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\| \\_x\\_ \\\\\\| a_b" in text
    assert not {"<", "|"} & {*text.replace("\\|", "").split("### Accuracy")[0]}


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, "holds none of runs.jsonl, failures.jsonl, results.jsonl, .* gallery.png"),
        ({"results.jsonl": "", "runs.jsonl": "\n"}, "hold no line: train first"),
        ({"results.jsonl": "3\n"}, "results.jsonl is not a file of results: line 1 of it"),
        ({"results.jsonl": '{"method": "none"}\n'}, "a JSON object with method, seed, config"),
        ({"overhead.json": "[]"}, "overhead.json: not a file of pytest-benchmark's"),
    ],
)
def test_bad_input_is_refused(tmp_path, files, text):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=text):
        read([tmp_path])


def test_no_folder_is_refused():
    with pytest.raises(ValueError, match="name at least one folder"):
        Report(())()


def test_the_command_prints_the_tables_and_writes_everything_to_the_first_folder(tmp_path, capsys):
    one, other = tmp_path / "one", tmp_path / "other"
    write_all(one)
    write_lines(other / "results.jsonl", [result("puzzlemix", 1)])
    Report((one, other))()
    printed = capsys.readouterr().out
    rows = table(printed, "Accuracy and time")
    assert list(rows) == list(METHODS)
    assert rows["puzzlemix"]["seeds"] == "0 1 2"
    written = {line.split(": ")[1] for line in printed.splitlines() if "written: " in line}
    kinds = dict.fromkeys(kind for kind, _ in CONDITIONS if kind != "clean")
    pictures = {"accuracy-time", "training-loss", "top1-epochs", "overhead"}
    pictures |= {f"robustness-{kind}" for kind in kinds}
    names = {"report.html", "report.md", "results.csv", *(f"{name}.png" for name in pictures)}
    assert written == {str(one / name) for name in names}
    assert all((one / name).stat().st_size > 1000 for name in names)
    text = (one / "report.md").read_text()
    links = [line for line in text.splitlines() if line.startswith("![")]
    assert {line.rpartition("](")[2] for line in links} == {f"{name}.png)" for name in pictures}
    assert printed.startswith(re.sub(r"\n\n!\[.*", "", text))
    assert sorted(path.name for path in other.iterdir()) == ["results.jsonl"]
    assert not list(one.glob("*.tmp"))


def test_the_command_writes_where_it_is_told(tmp_path, capsys):
    write_lines(tmp_path / "runs" / "results.jsonl", [result("none", 0), result("none", 1)])
    out = tmp_path / "new" / "folder"
    Report((tmp_path / "runs",), out)()
    pictures = {f"{name}.png" for name in ("accuracy-time", "top1-epochs", "training-loss")}
    names = {"report.html", "report.md", "results.csv", *pictures}
    assert {path.name for path in out.iterdir()} == names
    before = {name: (out / name).read_bytes() for name in names}
    Report((tmp_path / "runs",), out)()
    assert before == {name: (out / name).read_bytes() for name in names}
