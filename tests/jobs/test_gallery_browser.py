"""The pages in a real browser: every picture loads, nothing is fetched, nothing sticks out."""

import pytest

from cluster.evaluation_rows import block_bytes, read_block
from jobs.gallery import write_demo_report
from jobs.gallery.evaluation import write_evaluation_report
from mos.evaluation.results import PictureScore
from tests.jobs.browser import Browser
from tests.jobs.test_gallery_demo import METHODS, picture, report

LOADED = "[...document.images].filter(i => i.complete && i.naturalWidth > 0).length"


@pytest.mark.slow
def test_every_picture_of_the_demos_page_loads_and_the_page_asks_for_nothing_else(tmp_path):
    path = write_demo_report(report(), tmp_path)
    with Browser() as browser:
        browser.open(path)
        assert browser.ask("document.images.length") == 3 * 8 + 3 * 4 + 1 + len(METHODS)
        assert browser.ask(LOADED) == browser.ask("document.images.length")
        assert browser.ask("document.title") == "Concepts trained apart, fused, drawn together"
        assert browser.ask("document.querySelectorAll('svg').length") == 3
        assert browser.ask("document.documentElement.scrollWidth <= window.innerWidth") is True
        fetched = [url for url in browser.requests if not url.startswith("data:")]
    assert fetched == [path.resolve().as_uri()]


@pytest.mark.slow
def test_every_picture_of_an_evaluations_report_loads(tmp_path):
    scores = [
        PictureScore(
            method=method, model=method, concept=concept, suite="s", family="place", prompt=f"a <TOK> number {seed}",
            seed=seed, scores={"probe_identity": 0.25 * (seed % 5), "text_alignment": 0.6},
        )
        for method in ("ceiling: renders", "single", "fused", "floor: untrained base")
        for concept in ("al/robot@1", "bo/cat@2")
        for seed in range(6)
    ]  # fmt: skip
    rows = read_block(block_bytes(scores, [picture(7 * index) for index in range(len(scores))]), "block")
    settings = {
        "suite": {"name": "s"}, "num_seeds": 1, "num_inference_steps": 12, "guidance_scale": 3.0,
        "scorer_digest": "ab", "base_digest": "cd",
    }  # fmt: skip
    path = write_evaluation_report("ef" * 32, settings, rows, tmp_path, highlight="fused")
    with Browser() as browser:
        browser.open(path)
        assert browser.ask("document.images.length") == 4 * 2 * 6
        assert browser.ask(LOADED) == 4 * 2 * 6
        assert browser.ask("document.querySelectorAll('svg').length") > 0
        assert browser.ask("document.documentElement.scrollWidth <= window.innerWidth") is True
        fetched = [url for url in browser.requests if not url.startswith("data:")]
    assert fetched == [path.resolve().as_uri()]


@pytest.mark.slow
def test_a_broken_picture_would_be_noticed(tmp_path):
    path = write_demo_report(report(), tmp_path)
    text = path.read_text()
    start = text.index("data:image/png;base64,") + 40
    path.write_text(text[:start] + "AAAA" + text[start + 4 :])
    with Browser() as browser:
        browser.open(path)
        assert browser.ask(LOADED) == browser.ask("document.images.length") - 1


@pytest.mark.slow
def test_dark_colours_keep_text_readable(tmp_path):
    path = write_demo_report(report(), tmp_path)
    with Browser() as browser:
        browser._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        browser.open(path)
        paper, ink = (
            browser.ask(f"getComputedStyle(document.documentElement).{name}") for name in ("backgroundColor", "color")
        )
    assert contrast(paper, ink) > 7.0


def contrast(first: str, second: str) -> float:
    """WCAG contrast ratio of two `rgb(r, g, b)` colours."""
    lights = sorted(luminance(colour) for colour in (first, second))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
