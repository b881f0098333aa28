"""The report's page in a real browser: needs Chromium and Playwright (tox -e browser)."""

import os
import shutil

import pytest

from harness.report import read, sections, write
from tests.report_inputs import (
    METHODS,
    config,
    failure,
    result,
    write_all,
    write_few_shot,
    write_lines,
)

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: tox -e browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium on the path, or named in the variable CHROMIUM"
)

LONG = "a-method-with-quite-a-long-name-" + "x" * 40


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of everything: three settings, eleven methods and more, failures, missing runs."""
    one, other, few_shot = (tmp_path_factory.mktemp(name) for name in ("one", "other", "few-shot"))
    write_all(one)
    write_few_shot(few_shot, (*METHODS, LONG))
    paper = {"lambda_max": 0.6, "update_ratio": 0.7}
    large = {"dataset": "torch/imagenet-with-a-very-long-name-" + "y" * 60}
    write_lines(
        other / "results.jsonl",
        [
            *(result("sage", seed, 50.0 + seed, config=paper) for seed in range(3)),
            result(LONG, 0, 47.0, train_seconds=500.0),
            result("none", 0, 70.0, config=large),
        ],
    )
    failed = failure("cutmix", 0, f"ValueError: {'z' * 500}", **large)
    write_lines(other / "failures.jsonl", [failed])
    write_lines(
        other / "runs.jsonl", [{"method": "sage", "seed": 1, "config": config("sage", 1, **large)}]
    )
    write(sections(read([one, other, few_shot])), one)
    return (one / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(params=[(w, s) for w in (360, 1280) for s in ("light", "dark")], ids=str)
def page(request, browser, address):
    """The page at one width and in one scheme; fails if it says anything or asks for anything."""
    width, scheme = request.param
    said, asked = [], []
    size = {"width": width, "height": 800}
    context = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=2)
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [address]


def test_it_never_scrolls_sideways_but_its_wide_tables_do(page):
    width, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner
    boxes = page.evaluate(
        "[...document.querySelectorAll('.scroll')].map(b => [b.scrollWidth, b.clientWidth])"
    )
    assert len(boxes) == 7 + 2 * 3 + 4  # comparisons: of accuracy, robustness, novel classes
    wide = [content > box for content, box in boxes]
    assert any(wide)
    table = page.locator(".scroll").nth(wide.index(True))
    table.evaluate("box => box.scrollLeft = 1000")
    assert table.evaluate("box => box.scrollLeft") > 0
    assert page.evaluate("scrollX") == 0


def test_every_picture_loads_and_fits(page):
    pictures = page.evaluate(
        "[...document.images].map(image => [image.complete ? image.naturalWidth : 0, "
        "image.getBoundingClientRect().right])"
    )
    assert len(pictures) == 3 + 4 + 3 + 4 + 1
    inner = page.evaluate("innerWidth")
    for natural, right in pictures:
        assert natural > 0
        assert right <= inner


def test_the_page_follows_the_colour_scheme(page):
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    brightness = page.evaluate(
        "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    )
    assert (brightness < 128) == dark
