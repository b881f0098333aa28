import itertools
import re
from dataclasses import asdict

import matplotlib as mpl
import numpy as np
import pytest
from scipy.stats import ttest_rel

from harness.methods.base import MethodConfig
from harness.report import read, sections
from harness.report.episodes import parts
from harness.report.groups import settings
from harness.report.plots import SETTINGS, styles
from tests.report_inputs import (
    benchmark,
    episodes,
    few_shot_config,
    few_shot_result,
    report,
    result,
    write_benchmarks,
    write_few_shot,
    write_lines,
)

QUERIES = 75  # in an episode of 5 ways


def titles(text):
    """The titles of all tables."""
    return re.findall("^### (.*)$", text, flags=re.MULTILINE)


def rows(text, title):
    """The rows of a table, each by column."""
    block = text.split(f"### {title}\n\n")[1].split("\n\n")[0]
    header, _, *lines = ([c.strip() for c in line[1:-1].split(" | ")] for line in block.split("\n"))
    return [dict(zip(header, line, strict=True)) for line in lines]


def draw(seed, level, count=400):
    """Correct answers of a network in some episodes."""
    return np.random.default_rng(seed).binomial(QUERIES, level, count).tolist()


def percent(correct):
    return 100 * np.array(correct) / QUERIES


def paired(own, other):
    """The mean difference and its interval, by scipy."""
    low, high = ttest_rel(own, other).confidence_interval(0.95)
    return f"{np.mean(own) - np.mean(other):+.2f} ({low:+.2f} to {high:+.2f})"


@pytest.fixture
def answers():
    """Correct answers by method, seed and shots; one seed of mixup is missing."""
    levels = {"none": 0.40, "mixup": 0.43, "sage": 0.44}
    runs = [(m, s) for m in levels for s in range(3) if (m, s) != ("mixup", 1)]
    return {
        (method, seed, shots): draw([index, shots], levels[method] + 0.04 * shots + 0.01 * seed)
        for index, (method, seed) in enumerate(runs)
        for shots in (1, 5)
    }


@pytest.fixture
def text(tmp_path, answers):
    """The report of these answers."""
    results = [few_shot_result(m, s) for m, s in dict.fromkeys(key[:2] for key in answers)]
    lines = [episodes(m, s, correct, shots) for (m, s, shots), correct in answers.items()]
    return report(tmp_path, results=results, episodes=lines)


def means(answers, method, shots):
    """Accuracy by seed."""
    return {s: percent(c).mean() for (m, s, k), c in answers.items() if (m, k) == (method, shots)}


def test_means_and_deviations_over_the_seeds(text, answers):
    found = rows(text, "Novel classes, 5-way")
    assert [(row["method"], row["seeds"]) for row in found] == [
        ("none", "0 1 2"),
        ("mixup", "0 2, missing 1"),
        ("sage", "0 1 2"),
    ]
    for row, shots in itertools.product(found, (1, 5)):
        values = [*means(answers, row["method"], shots).values()]
        expected = f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
        assert row[f"{shots}-shot centroid"].strip("*") == expected
    bold = {(row["method"], name) for row in found for name, cell in row.items() if "**" in cell}
    assert bold == {("sage", "1-shot centroid"), ("sage", "5-shot centroid")}
    assert (
        "Accuracy in percent of 5-way episodes of the novel classes, which neither training nor "
        "the choice of the epoch has seen: 400 episodes, the same for every network, with 15 "
        "queries a class; normalisation cl2n; mean ± sample standard deviation over seeds.\n"
    ) in text


def test_methods_are_compared_seed_by_seed_as_scipy_does(text, answers):
    for other in ("none", "mixup"):
        found = rows(text, f"Novel classes, 5-way, less {other}'s")
        assert [row["method"] for row in found] == [
            m for m in ("none", "mixup", "sage") if m != other
        ]
        for row, shots in itertools.product(found, (1, 5)):
            own, others = (means(answers, name, shots) for name in (row["method"], other))
            seeds = sorted(own.keys() & others.keys())
            assert row["seeds"] == " ".join(map(str, seeds))
            expected = paired([own[s] for s in seeds], [others[s] for s in seeds])
            assert row[f"{shots}-shot"] == expected
    assert "less cutmix's" not in text
    assert "in points, with the classifier centroid after cl2n (95 %" in text


def test_findings_are_of_novel_classes_and_say_the_cost_once(tmp_path, text, answers):
    def bullets(text):
        return [line for line in text.splitlines() if line.startswith("- ")]

    without = bullets(text)[:4]
    of = {"model": "cnn4", "mixing": asdict(MethodConfig())}
    benchmarks = [benchmark(m, "step", 1.0, r, **of) for m, r in (("sage", 2.0), ("mixup", 1.0))]
    write_benchmarks(tmp_path / "overhead.json", benchmarks)
    *found, holm = bullets(report(tmp_path))
    assert len(found) == 4  # none and mixup, 1 and 5 shots
    assert "among these 2 below" in holm  # mixup has two seeds, which rank nothing
    assert [line.replace("; its step takes 2.00 times as long", "") for line in found] == without
    for line, (other, shots) in zip(
        found, itertools.product(("none", "mixup"), (1, 5)), strict=True
    ):
        own, others = (means(answers, name, shots) for name in ("sage", other))
        seeds = sorted(own.keys() & others.keys())
        test = ttest_rel([own[s] for s in seeds], [others[s] for s in seeds])
        low, high = test.confidence_interval(0.95)
        words = f"sage less {other}"
        if len(seeds) > 2:
            assert low > 0
            words = f"sage is ahead of {other}"
            assert f"(95 % interval {low:+.2f} to {high:+.2f} over 3 seeds; still so" in line
        assert line.startswith(f"- 5-way, {shots}-shot (centroid, cl2n): {words}: ")
        assert line.endswith("; its step takes 2.00 times as long.") == (shots == 1)


def test_of_one_seed_the_interval_over_episodes_is_shown(tmp_path):
    lines = [episodes(method, 0, draw(1, 0.5), interval=0.31) for method in ("none", "mixup")]
    text = report(tmp_path, episodes=lines)
    cells = [row["1-shot centroid"] for row in rows(text, "Novel classes, 5-way")]
    assert cells == [f"**{percent(draw(1, 0.5)).mean():.2f} ± 0.31**"] * 2
    assert "; normalisation cl2n; ± 95 % interval over episodes." in text
    assert titles(text) == ["Novel classes, 5-way"]
    more = [*lines, episodes("none", 1, draw(2, 0.5))]
    text = report(tmp_path, episodes=more)
    assert "over seeds; of one seed, ± 95 % interval over episodes." in text


def test_top1_is_called_what_it_is(text):
    (row, *_) = rows(text, "Validation classes and time")
    assert row["validation accuracy, %"] == "**50.00 ± 0.00**"
    assert row["best epoch"] == "30 ± 0"
    assert "top-1" not in text
    assert (
        "Validation accuracy: 5-way 1-shot episodes of the validation classes (600 episodes, 15 "
        "queries a class) at each run's best epoch, which was chosen by it"
    ) in text


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"episode_seed": 7}, "episode seed 7"),
        ({"data": "c3d4"}, "images c3d4"),
        ({"queries": 16}, "16 queries"),
        ({"count": 300}, "300 episodes"),
    ],
)
def test_runs_that_met_other_episodes_are_not_compared(tmp_path, changes, word):
    correct = draw(0, 0.4, changes.pop("count", 400))
    lines = [episodes("none", 0, draw(0, 0.4)), episodes("sage", 0, correct, **changes)]
    text = report(tmp_path, episodes=lines)
    found = titles(text)
    assert len(found) == 2  # no table of differences
    assert f"Novel classes, 5-way, {word}" in found
    assert not any(line.startswith("- ") for line in text.splitlines())


def test_the_later_of_two_lines_counts(tmp_path):
    lines = [
        episodes("none", 0, [10] * 9),
        episodes("none", 0, [20] * 9, classifier="svm"),
        episodes("none", 0, [30] * 9),
    ]
    (row,) = rows(report(tmp_path, episodes=lines), "Novel classes, 5-way")
    assert (row["1-shot centroid"], row["1-shot svm"]) == ("40.00 ± 0.25", "26.67 ± 0.25")


def test_runs_without_episodes_and_episodes_without_runs_are_shown(tmp_path):
    text = report(
        tmp_path,
        results=[few_shot_result(method, seed) for method in ("none", "mixup") for seed in (0, 1)],
        episodes=[
            episodes("none", 0, draw(0, 0.4)),
            episodes("none", 1, draw(0, 0.4)),
            episodes("none", 1, draw(0, 0.4), classifier="svm"),
            episodes("sage", 2, draw(0, 0.4)),
        ],
    )
    assert [(r["method"], r["seeds"]) for r in rows(text, "Novel classes, 5-way")] == [
        ("none", "1, in part 0, missing 2"),
        ("mixup", "missing 0 1 2"),
        ("sage", "in part 2, missing 0 1"),
    ]
    trained = rows(text, "Validation classes and time")
    assert [(r["method"], r["seeds"]) for r in trained] == [("none", "0 1"), ("mixup", "0 1")]


def test_each_learner_has_a_section_that_names_it(tmp_path):
    lines, results = [], [result("none", 0)]  # and one that is not few-shot
    for learner in ("classifier", "protonet", "maml"):
        settings = few_shot_config("none", 0, learner)
        results.append(few_shot_result("none", 0, settings=settings))
        lines.append(episodes("none", 0, draw(0, 0.4), settings=settings))
    text = report(tmp_path, results=results, episodes=lines)
    few_shot = "fewshot/mini-imagenet, 1000 training images, 2000 to choose the epoch by, cnn4, 40 "
    assert re.findall("^## (.*)$", text, flags=re.MULTILINE) == [
        "glyphs, 1000 training images, 2000 to measure on, preactresnet8_cifar, 40 epochs",
        f"{few_shot}epochs",
        f"{few_shot}epochs, protonet",
        f"{few_shot}epochs, maml",
    ]
    assert text.count("### Novel classes, 5-way\n") == 3
    assert text.count("### Accuracy and time\n") == 1


def test_settings_that_differ_in_validation_say_how(tmp_path):
    lines = [
        few_shot_result("none", 0, settings=few_shot_config("none", 0, validation_episodes=count))
        for count in (100, 200)
    ]
    found = re.findall("^## .*$", report(tmp_path, results=lines), flags=re.MULTILINE)
    assert [title.rpartition(", ")[2] for title in found] == ["episodes 100", "episodes 200"]


def test_wide_tables_are_divided(tmp_path):
    lines = [
        episodes("none", 0, draw(0, 0.4), shots, normalization=normalization, classifier=classifier)
        for normalization, classifiers in (("none", "abcde"), ("cl2n", ["logistic", "centroid"]))
        for classifier in classifiers
        for shots in (5, 1)
    ]
    text = report(tmp_path, episodes=lines)
    columns = {
        title: [*rows(text, title)[0]][2:] for title in titles(text) if title.startswith("Novel")
    }
    assert columns == {
        "Novel classes, 5-way, none, 1-shot": [f"1-shot {name}" for name in "abcde"],
        "Novel classes, 5-way, none, 5-shot": [f"5-shot {name}" for name in "abcde"],
        "Novel classes, 5-way, cl2n": [
            f"{shots}-shot {name}" for shots in (1, 5) for name in ("logistic", "centroid")
        ],
    }
    assert "; normalisation none; " in text
    assert "; normalisation cl2n; " in text


def test_ways_have_tables_of_their_own(tmp_path):
    lines = [episodes("none", 0, [60] * 9, ways=ways) for ways in (20, 5)]
    text = report(tmp_path, episodes=lines)
    assert titles(text) == ["Novel classes, 5-way", "Novel classes, 20-way"]
    cells = [rows(text, title)[0]["1-shot centroid"] for title in titles(text)]
    assert cells == ["80.00 ± 0.25", "20.00 ± 0.25"]


def test_the_classifier_that_methods_are_compared_by_does_not_hang_on_the_order(tmp_path):
    lines = [
        episodes(method, 0, correct, normalization=normalization, classifier=classifier)
        for normalization, classifier, correct in (
            ("cl2n", "logistic", [30, 31]),
            ("l2", "centroid", [32, 34]),
            ("cl2n", "centroid", [36, 37]),
        )
        for method, correct in (("none", [30, 30]), ("sage", correct))
    ]
    for first in range(len(lines)):
        text = report(tmp_path, episodes=lines[first:] + lines[:first])
        # 6.5 more queries of 75.
        assert "- 5-way, 1-shot (centroid, cl2n): sage less none: +8.67 points" in text


def test_foreign_lines_are_skipped_and_named(tmp_path, capsys):
    line = episodes("none", 0, [30] * 3)
    bad = {name: value for name, value in line.items() if name != "accuracy"}
    text = report(tmp_path, episodes=[bad, line, {**line, "ways": "5"}])
    assert rows(text, "Novel classes, 5-way")[0]["1-shot centroid"] == "40.00 ± 0.25"
    start = (
        f"{tmp_path / 'episodes.jsonl'}: skipped lines 1, 3 (not a JSON object with method, seed"
    )
    assert capsys.readouterr().err.startswith(start)
    assert "## Lines that were skipped\n\n- " in text


def test_the_plot_has_a_panel_for_each_number_of_shots(tmp_path, answers):
    lines = [episodes(m, s, correct, shots) for (m, s, shots), correct in answers.items()]
    lines.append(episodes("cutmix", 0, draw(0, 0.5), shots=5, interval=1.5))
    lines.append(
        episodes("none", 0, [75] * 9, classifier="svm")
    )  # not what methods are compared by
    write_lines(tmp_path / "episodes.jsonl", lines)
    (setting,) = settings(read([tmp_path]).files)
    looks = styles(["none", "mixup", "cutmix", "sage"])
    (picture,) = [*parts(setting, looks)][-3].pictures  # of the larger draw; two are compared
    with mpl.rc_context(SETTINGS):
        figure = picture.draw()
        figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes] == ["1-shot", "5-shot"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert sorted(names) == ["cutmix", "mixup", "none", "sage"]
    for axes, shots in zip(figure.axes, (1, 5), strict=True):
        dots = {}
        for container in axes.containers:
            dot, _, (bar,) = container
            ((x, y),) = dot.get_xydata()
            (segment,) = bar.get_segments()
            name = names[round(y)]
            assert dot.get_color() == looks[name]["color"]
            dots[name] = (x, (segment[1, 0] - segment[0, 0]) / 2)
        expected = {}
        for name in ("none", "mixup", "sage"):
            values = [*means(answers, name, shots).values()]
            expected[name] = (np.mean(values), np.std(values, ddof=1))
        if shots == 5:
            expected["cutmix"] = (percent(draw(0, 0.5)).mean(), 1.5)
        assert dots.keys() == expected.keys()
        for name, pair in expected.items():
            assert dots[name] == pytest.approx(pair)
        assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first at the top
    sage = np.mean([*means(answers, "sage", 1).values()])
    assert picture.alt.startswith("1-shot: none: ")
    assert f"sage: {sage:.1f} ± " in picture.alt


def test_many_methods_and_seeds(tmp_path):
    write_few_shot(tmp_path)
    (section,) = sections(read([tmp_path]))
    tables = {part.table.title: part.table for part in section.parts}
    assert len(tables["Novel classes, 5-way"].rows) == 11
    assert [p.name for part in section.parts for p in part.pictures] == [
        "novel-classes",
        "accuracy-time",
        "training-loss",
        "top1-epochs",
    ]
