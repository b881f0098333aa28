import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from harness.report import read, sections, write
from tests.report_inputs import (
    benchmark,
    failure,
    result,
    robustness,
    write_benchmarks,
    write_lines,
)

VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """Collects a page's elements and text; fails if an end tag does not fit."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, tag):
        return [data for within, data in self.texts if within == tag]

    def attributes(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    hostile = '</table><script src="http://example.org/x.js">alert(1)</script> & "x" | y'
    results = [
        result("none", 0, 50.0),
        result("none", 1, 52.0),
        result("sage", 0, 60.0, dataset="b&b <img src=x onerror=alert(1)>"),
        result('"><b>method', 0, 40.0),
    ]
    write_lines(path / "results.jsonl", results)
    write_lines(path / "failures.jsonl", [failure("mixup", 1, f"ValueError: {hostile}")])
    write_lines(path / "robustness.jsonl", [robustness("sage", 0, "<i>noise", 0.1, 40.0)])
    write_benchmarks(path / "overhead.json", [benchmark("sage", "step", 160.0, 2.0)])
    write(sections(read([path])), path)
    return (path / "report.html").read_text()


def test_what_was_read_is_text_and_no_markup(html):
    page = Page(html)
    names = {name for name, _ in page.elements}
    assert not {"script", "b", "i", "iframe", "object"} & names
    assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert any('</table><script src="http://example.org/x.js">' in text for text in page.text("li"))
    assert '"><b>method' in page.text("th")
    assert any("<i>noise" in text for text in page.text("figcaption"))


def test_it_needs_no_other_file(html):
    page = Page(html)
    addresses = [
        attrs[name]
        for _, attrs in page.elements
        for name in ("src", "srcset", "href", "data", "action")
        if name in attrs
    ]
    assert all(address.startswith(("data:", "#section-")) for address in addresses)
    assert not re.search(r"url\(|@import", html)
    pictures = [image["src"] for image in page.attributes("img")]
    assert len(set(pictures)) == len(pictures) == 5
    for picture in pictures:
        kind, _, content = picture.partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as image:
            image.verify()
    (policy,) = [meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta]
    assert "default-src 'none'" in policy


def test_it_says_what_it_is(html):
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert page.attributes("html") == [{"lang": "en"}]
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert viewport in page.attributes("meta")
    assert page.text("title") == ["Is SAGE worth it?"]
    assert page.text("h1") == ["Is SAGE worth it?"]
    assert len(page.text("h2")) == 2
    assert all(image["alt"] for image in page.attributes("img"))
    identities = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(identities) == len(set(identities))
    assert {link["href"][1:] for link in page.attributes("a")} <= set(identities)


def test_tables_have_headers_and_the_best_in_bold(html):
    page = Page(html)
    columns = [attrs["scope"] for attrs in page.attributes("th")]
    assert columns.count("row") == 4 + 4 + 1  # accuracy, robustness, cost
    assert "60.00" in page.text("strong")
    assert "51.00 ± 1.41" in page.text("td")
    assert "0, missing 1" in page.text("td")
    assert "failed 1, missing 0" in page.text("td")
