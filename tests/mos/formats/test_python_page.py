"""The examples of docs/python.md run as they are written."""

import re
from pathlib import Path

import pytest

from mos.artifact import write_artifact
from mos.concept import ConceptRef
from mos.fusion import FusionConfig, FusionSource, fuse, write_fused
from mos.random_base import random_base
from tests.mos.formats.concepts import random_concept
from tests.mos.formats.pipelines import pipeline_of

PAGE = Path(__file__).parents[3] / "docs" / "python.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the page's reader has: a base, two concepts, a fused model."""
    folder = tmp_path_factory.mktemp("page")
    base = random_base("sd1")
    pipeline_of(base).save_pretrained(folder / "my-base")
    concepts = {"alice/cat": random_concept(base, seed=1), "bob/robot": random_concept(base, seed=2)}
    sources = []
    for name, edlora in concepts.items():
        ref = ConceptRef.parse(f"{name}@1")
        write_artifact(edlora, folder / f"{ref.name}.safetensors")
        sources.append(FusionSource(ref=ref, edlora=edlora))
    write_fused(fuse(base, sources, FusionConfig(strategy="average")), folder / "fused")
    return folder


def test_every_example_of_the_page_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert len(EXAMPLES) == 6
    names: dict = {}
    for example in EXAMPLES:
        exec(compile(example, str(PAGE), "exec"), names)
    assert names["picture"].size == (32, 32)
    assert (folder / "cat.png").is_file()
    assert names["fused"].words == ("<alice-cat>", "<bob-robot>")
    assert len(names["seeded"]) == 2
