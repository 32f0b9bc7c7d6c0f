"""The demo's report as a page: whole, self-contained, and true to its input."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from jobs.gallery import (
    BeforeAfter,
    ConceptPictures,
    DemoReport,
    Lineage,
    Phase,
    ProcessSpan,
    Together,
    write_demo_report,
)
from jobs.gallery.timeline import most_at_once, timeline_svg
from mos.evaluation.claim import ClaimResult, Example
from mos.evaluation.results import PictureScore, compare, summarise
from mos.evaluation.verdicts import Verdict

METHODS = ("ceiling: renders", "single", "average", "sum", "gradient", "floor: untrained base")


class Page(HTMLParser):
    """Collects what the tests ask of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "img":
            self.images.append(found)
        for name in ("src", "href", "action", "data"):
            if found.get(name):
                self.links.append(found[name])

    def handle_data(self, data):
        self.text += data


def picture(value: int) -> Image.Image:
    return Image.new("RGB", (64, 64), (value % 256, (3 * value) % 256, 90))


def claim() -> ClaimResult:
    rows = [
        PictureScore(
            method=method,
            concept="alice/robot@1",
            prompt=f"a <alice-robot> number {seed}",
            seed=seed,
            scores={"probe_pattern": float((seed * (index + 2)) % 5 > 1), "text_alignment": 0.6 + 0.01 * (seed % 7)},
        )
        for index, method in enumerate(METHODS)
        for seed in range(20)
    ]
    pictures = {method: picture(30 * index) for index, method in enumerate(METHODS)}
    return ClaimResult(
        rows=rows,
        cells=summarise(rows),
        differences=[compare(rows, "gradient", "average", "probe_pattern")],
        verdicts=[
            Verdict(statement="Gradient fusion keeps more than averaging.", holds=None, evidence="20 pairs"),
            Verdict(statement="Pixels are <square> & small.", holds=True, evidence="seen"),
        ],
        examples=[Example(concept="alice/robot@1", prompt="a <alice-robot>", seed=1, pictures=pictures)],
    )


def report(**changes) -> DemoReport:
    values = {
        "concepts": [
            ConceptPictures(
                ref=f"{owner}/robot@1",
                word=f"<{owner}-robot>",
                class_word="robot",
                training=[picture(i) for i in range(8)],
                alone=[picture(50 + i) for i in range(4)],
                prompts=[f"<{owner}-robot> in the {place}" for place in ("city", "forest", "snow", "desert")],
            )
            for owner in ("alice", "bob", "carol")
        ],
        "together": [Together(image=picture(99), prompt="three friends", regions=["<alice-robot> left"])],
        "claim": claim(),
        "processes": [
            ProcessSpan(name="train alice/robot", role="trainer", pid=11, started=100.0, ended=140.0),
            ProcessSpan(name="train bob/robot", role="trainer", pid=12, started=101.0, ended=143.0),
            ProcessSpan(name="train carol/robot", role="trainer", pid=11, started=140.0, ended=181.0),
            ProcessSpan(name="solve bin 1", role="solver", pid=13, started=190.0, ended=195.0),
            ProcessSpan(name="solve bin 2", role="solver", pid=14, started=190.5, ended=194.0),
        ],
        "phases": [
            Phase(name="train", wall_s=81.0, cpu_s=150.0, peak_memory_bytes=2_100_000_000),
            Phase(name="fuse", wall_s=6.0, cpu_s=9.5, peak_memory_bytes=2_400_000_000),
        ],
        "lineage": [Lineage(name="alice/robot@1", kind="concept", sha256="ab" * 32, made_from="small world")],
        "facts": {"base": "small world"},
    }
    return DemoReport(**(values | changes))


def page(tmp_path: Path, demo: DemoReport) -> tuple[str, Page]:
    path = write_demo_report(demo, tmp_path / "out")
    assert path.name == "report.html"
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_every_picture_is_inside_the_page_and_has_a_text_for_it(tmp_path):
    _, found = page(tmp_path, report())
    assert len(found.images) == 3 * 8 + 3 * 4 + 1 + len(METHODS)
    for image in found.images:
        assert image["alt"]
        header, _, data = image["src"].partition(",")
        assert header == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 64)


def test_the_page_asks_the_network_for_nothing(tmp_path):
    text, found = page(tmp_path, report())
    assert all(link.startswith(("data:", "#")) for link in found.links)
    assert "<script" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_scores_times_and_digests_are_on_the_page(tmp_path):
    demo = report()
    _, found = page(tmp_path, demo)
    for cell in demo.claim.cells:
        interval = cell.intervals["probe_pattern"]
        assert f"{interval.mean:.3f}{interval.low:.3f} – {interval.high:.3f}" in found.text
    assert "cannot be told" in found.text
    assert "ab" * 32 in found.text
    assert "159.5 s" in found.text or "160 s" in found.text
    assert "2.40 GB" in found.text


def test_a_total_among_the_phases_is_not_counted_twice(tmp_path):
    demo = report()
    total = Phase(name="all", wall_s=87.0, cpu_s=159.5, peak_memory_bytes=2_400_000_000)
    _, found = page(tmp_path, report(phases=[*demo.phases, total]))
    assert found.text.count("159.5") + found.text.count("160 s") == 2
    assert "319" not in found.text


def test_words_and_claims_are_escaped(tmp_path):
    text, found = page(tmp_path, report())
    assert "<alice-robot>" not in text
    assert "<alice-robot> in the city" in found.text
    assert "Pixels are <square> & small." in found.text


def test_an_empty_part_leaves_no_section_behind(tmp_path):
    demo = report(together=(), claim=None, processes=(), phases=(), lineage=())
    _, found = page(tmp_path, demo)
    assert "The concepts" in found.text
    for title in ("Together", "Scores", "Processes", "Lineage", "Before and after"):
        assert title not in found.text


def test_before_and_after_rows_keep_the_order_of_methods(tmp_path):
    rows = [BeforeAfter(ref="a/b@1", prompt="p", seed=4, pictures={"single": picture(1), "gradient": picture(2)})]
    text, _ = page(tmp_path, report(before_after=rows))
    assert text.index('scope="col">single') < text.index('scope="col">gradient')


def test_most_at_once_counts_processes_not_spans():
    spans = report().processes
    assert most_at_once(spans, "trainer") == 2
    assert most_at_once(spans, "solver") == 2
    assert most_at_once(spans) == 2
    assert most_at_once(spans, "sampler") == 0


def test_touching_spans_do_not_overlap():
    spans = [
        ProcessSpan(name="a", role="trainer", pid=1, started=0.0, ended=5.0),
        ProcessSpan(name="b", role="trainer", pid=2, started=5.0, ended=9.0),
    ]
    assert most_at_once(spans, "trainer") == 1


def test_the_timeline_draws_every_span_on_its_process_lane():
    drawing = timeline_svg(report().processes)
    assert drawing.count("<g><title>") == 5
    assert drawing.count('class="lane"') == 4
    assert "trainer: 2 at once" in drawing
    with pytest.raises(ValueError, match="before"):
        ProcessSpan(name="a", role="b", pid=1, started=2.0, ended=1.0)
