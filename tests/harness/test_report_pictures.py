import io
import itertools
import math
import re
from collections import Counter
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import harness.report
from harness.report.groups import labelled, settings
from harness.report.plots import (
    GROUNDS,
    INK,
    OTHERS,
    SAGE,
    SETTINGS,
    accuracy_pictures,
    draw_bars,
    draw_lines,
    overhead_picture,
    robustness_pictures,
    styles,
)
from tests.report_inputs import METHODS, benchmark, result, robustness

STYLES = styles(METHODS)


def luminance(colour):
    """Relative luminance, as WCAG 2 has it."""
    channels = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def draw(picture):
    """The figure and its only axes."""
    with mpl.rc_context(SETTINGS):
        figure = picture.draw()
    (axes,) = figure.axes
    return figure, axes


def by_colour(lines):
    """Of some lines, those that are curves, by colour."""
    return {line.get_color(): line for line in lines if line.get_linestyle() != "None"}


def test_methods_can_be_told_apart():
    labels = [*METHODS, "new", "newer", "sage, lambda_max 0.5", "sage, lambda_max 1.0"]
    looks = styles(labels)
    lines = [looks[label] for label in labels]
    for first, second in itertools.combinations(lines, 2):
        different = {key for key in ("color", "linestyle", "marker") if first[key] != second[key]}
        assert different & {"color", "linestyle"}
        assert different & {"color", "marker"}
    for ground, colour in itertools.product(GROUNDS, (INK, *(line["color"] for line in lines))):
        low, high = sorted(map(luminance, (ground, colour)))
        assert (high + 0.05) / (low + 0.05) >= (4 if colour == INK else 3)


def test_the_grounds_are_the_pages():
    page = (Path(harness.report.__file__).parent / "page.html.jinja").read_text()
    assert re.findall(r"--ground: (#\w+);", page) == [*GROUNDS]


# Machado et al., 2009, of full severity, on linear RGB; the first changes nothing.
VISIONS = {
    "all": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# CIE 1931, of sRGB's primaries under D65.
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


@pytest.mark.parametrize("vision", VISIONS.values(), ids=VISIONS)
def test_colours_stay_apart_whoever_looks(vision):
    rgb = np.array([mpl.colors.to_rgb(colour) for colour in (SAGE, *OTHERS)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(vision), 0, 1) @ np.transpose(XYZ)
    x, y, z = np.cbrt(seen / np.sum(XYZ, axis=1)).T  # none is so dark that CIELAB is linear
    lab = np.transpose([116 * y - 16, 500 * (x - y), 200 * (y - z)])
    for first, second in itertools.combinations(lab, 2):
        assert np.linalg.norm(first - second) >= 26


def test_a_method_looks_the_same_whatever_else_is_there():
    assert {label: styles(["sage", "aa"])[label] for label in METHODS} == {
        label: STYLES[label] for label in METHODS
    }


@pytest.mark.parametrize("label", ["new", "a-method-with-quite-a-long-name-" + "x" * 40])
def test_the_labels_of_crowded_points_do_not_overlap(label):
    random, labels = np.random.default_rng(0), [*METHODS, label]
    looks = styles(labels)
    points = pd.DataFrame({"label": labels})
    points["place"], points["mean"] = random.normal((10, 50), (0.5, 1), (len(labels), 2)).T
    points["deviation_of_place"], points["deviation"] = 0.2, 0.3
    with mpl.rc_context(SETTINGS):
        figure = draw_lines(points, looks, ("time, s", "top-1, %"))
        figure.draw_without_rendering()
    (axes,) = figure.axes
    (legend,) = figure.legends
    texts = legend.get_texts()
    assert [text.get_text() for text in texts][:-1] == [*METHODS]
    for text, handle in zip(texts, legend.legend_handles, strict=True):
        if text.get_text() in looks:
            assert handle.get_color() == looks[text.get_text()]["color"]
    boxes = [text.get_window_extent() for text in texts]
    for first, second in itertools.combinations([*boxes, axes.get_tightbbox()], 2):
        assert not first.overlaps(second)
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_accuracy_against_time_has_a_point_a_method():
    lines = [result("none", seed, 50.0 + seed, train_seconds=60.0 + seed) for seed in (0, 2)]
    lines += [result("sage", 0, 55.0, train_seconds=200.0), result("mixup", 0, math.nan)]
    (setting,) = settings({"results": lines})
    picture = accuracy_pictures(setting, STYLES)[0]
    assert picture.alt == "none: 51.0 % in 1.0 min; sage: 55.0 % in 3.3 min"
    _, axes = draw(picture)
    points = [line.get_xydata()[0] for line in axes.lines if line.get_marker() in "o*"]
    np.testing.assert_allclose(points, [(61 / 60, 51.0), (200 / 60, 55.0)])


def test_learning_curves_are_means_over_the_seeds():
    lines = [result("none", seed) for seed in (0, 1)]
    for line in lines:
        for index, epoch in enumerate(line["history"]):
            epoch["train_loss"] = index + 3.0 * line["seed"]
            if "top1" in epoch:
                epoch["top1"] = 2.0 * index + line["seed"]
    (setting,) = settings({"results": lines})
    loss, top1 = (draw(picture)[1].lines[0] for picture in accuracy_pictures(setting, STYLES)[1:])
    assert [*loss.get_xdata()] == [*range(1, 41)]
    np.testing.assert_allclose(loss.get_ydata(), np.arange(40) + 1.5)
    assert [*top1.get_xdata()] == [*range(31, 41)]
    np.testing.assert_allclose(top1.get_ydata(), 2.0 * np.arange(30, 40) + 0.5)


def test_robustness_curves_start_at_the_clean_accuracy():
    lines = [
        robustness(method, seed, kind, strength, top1 + seed - 100 * strength)
        for method, top1 in (("none", 50.0), ("sage", 60.0))
        for seed in (0, 2)
        for kind, strength in (("noise", 0.2), ("clean", 0.0), ("noise", 0.1), ("pgd", 8.0))
    ]
    (setting,) = settings({"results": [result("none", 0)], "robustness": lines})
    noise, pgd = robustness_pictures(setting.lines["robustness"], STYLES)
    assert (noise.name, pgd.name) == ("robustness-noise", "robustness-pgd")
    curves = by_colour(draw(noise)[1].lines)
    for method, top1 in (("none", 51.0), ("sage", 61.0)):
        curve = curves[STYLES[method]["color"]]
        expected = [(0, top1), (0.1, top1 - 10), (0.2, top1 - 20)]
        np.testing.assert_allclose(curve.get_xydata(), expected)


def test_bars_show_the_ratio_and_the_parts():
    cost = labelled(
        [
            line["extra_info"]
            for line in (
                benchmark("sage", "mixing", 20.0),
                benchmark("sage", "step", 160.0, 2.0),
                benchmark("sage", "saliency", 48.0),
                benchmark("none", "step", 77.0, 1.0),
                benchmark("mixup", "mixing", 1.0),
            )
        ]
    )
    _, axes = draw(overhead_picture(cost, STYLES))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["none", "sage"]
    # A step without mixing took 160 / 2 = 80 ms beside SAGE's: 48 are 0.6 of it, 20 are 0.25.
    parts = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    np.testing.assert_allclose(parts, [(0, 1), (0, 1.15), (1.15, 0.6), (1.75, 0.25)], atol=1e-9)
    assert [text.get_text() for text in axes.texts] == ["1.00", "2.00"]


def test_a_picture_is_a_png_without_a_ground():
    cost = labelled([benchmark("sage", "step", 160.0, 2.0)["extra_info"]])
    picture = overhead_picture(cost, STYLES)
    png = picture.png()
    assert png == picture.png()
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        pixels = Counter(image.convert("RGBA").get_flattened_data())
    (ground, _), (bar, _) = pixels.most_common(2)
    assert ground[3] == 0
    assert bar == (*(round(255 * channel) for channel in mpl.colors.to_rgb(SAGE)), 255)


def test_a_label_is_no_formula():
    looks = styles(["$x_1$"])
    with mpl.rc_context(SETTINGS):
        figure = draw_bars(pd.DataFrame({"ratio": {"$x_1$": 1.5}}), looks, "ratio")
        figure.savefig(io.BytesIO())
    (label,) = figure.axes[0].get_yticklabels()
    assert not label.get_parse_math()
