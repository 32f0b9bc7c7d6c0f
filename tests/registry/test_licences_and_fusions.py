"""Terms and consent through fusion, lineage, and what a deletion touches; with a true fused model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mos.artifact import read_artifact
from mos.concept import ConceptRef
from mos.edlora.adapter import Adapter
from mos.errors import BadInputError, NotAllowedError, NotFoundError
from mos.facts import BaseFacts
from mos.fusion.config import FusionConfig
from mos.fusion.model import FusedModel, SourceRecord, read_fused, write_fused
from mos.fusion.source import FusionSource, vocabulary_of
from registry.client import Details, Registry
from registry.errors import LicenceError
from registry.licence import Licence, Person, check_fusable, combined
from registry.manifest import Source
from tests.registry.world import make_package, write_picture

A, B = ConceptRef("alice", "robot", 1), ConceptRef("bob", "cat", 1)


def test_a_fused_model_carries_the_most_restrictive_terms():
    ann = Person(label="Ann", consent_sha256="a" * 64)
    terms = combined(
        {
            A: Licence.named("cc-by-4.0", credit=["Alice"], persons=[ann]),
            B: Licence.named("cc-by-nc-4.0"),
        }
    )
    assert (terms.name, terms.commercial_use, terms.derivatives) == ("mixed", False, True)
    assert terms.credit == ("Alice", "bob/cat@1 by bob")
    assert terms.persons == (ann,)
    assert combined({A: Licence.named("cc0-1.0"), B: Licence.named("cc0-1.0")}).name == "cc0-1.0"


def test_what_forbids_merging_is_not_merged():
    with pytest.raises(LicenceError, match=r"bob/cat@1: its licence cc-by-nd-4\.0 forbids merging"):
        check_fusable({A: Licence.named("cc-by-4.0"), B: Licence.named("cc-by-nd-4.0")})
    unasked = Licence.named("cc-by-4.0", persons=[Person(label="Ann", consent_sha256=None)])
    with pytest.raises(LicenceError, match="without recorded consent"):
        check_fusable({A: unasked})
    with pytest.raises(BadInputError):
        combined({})


@pytest.fixture
def fused(registry: Registry, artifact: Callable[..., Path], facts: BaseFacts, tmp_path: Path) -> Path:
    """Two concepts published and listed, and a fused model of them."""
    licences = {A: "cc-by-4.0", B: "cc-by-nc-4.0"}
    sources = []
    for ref, licence in licences.items():
        key = registry.new_owner(ref.owner)
        path = artifact(ref.name, seed=len(sources))
        made = registry.publish(path, ref, key=key, run_id="run-1", licence=licence)
        assert made == ref
        sources.append(FusionSource(ref=ref, edlora=read_artifact(path, facts)))
    registry.index(bases=[facts])
    return write_fused(_fused(sources, facts), tmp_path / "fused")


def _fused(sources: Sequence[FusionSource], facts: BaseFacts, scale: float = 1.0, **words: Any) -> FusedModel:
    """A fused model of concepts, with the update of the first alone."""
    linears = {
        component: {name: update.scaled(scale) for name, update in updates.items()}
        for component, updates in sources[0].edlora.linears.items()
    }
    vocabulary = [replace(concept, **words) for concept in vocabulary_of(sources)]
    return FusedModel(
        adapter=Adapter(linears=linears, vocabulary=tuple(vocabulary)),
        sources=tuple(SourceRecord.of(source) for source in sources),
        config=FusionConfig(),
        base_name=facts.name,
        base_fingerprint=dict(facts.fingerprint),
        report={},
    )


TRIO = ConceptRef("carol", "trio")


def test_a_fusion_is_published_with_its_lineage_and_pulled_again(registry: Registry, fused: Path, facts: BaseFacts):
    ref = registry.publish(fused, TRIO, key=registry.new_owner("carol"), run_id="fuse-1", licence="cc0-1.0")
    report = registry.index(bases=[facts])
    assert report.states == {"listed": 1}
    found = registry.resolve(ref)
    assert [str(source.ref) for source in found.manifest.lineage] == ["alice/robot@1", "bob/cat@1"]
    assert (found.manifest.licence.name, found.manifest.licence.commercial_use) == ("mixed", False)
    assert found.checks[-4:] == ("artifact", "lineage", "base", "norms")
    pulled = registry.pull(ref)
    assert read_fused(pulled, facts).words == ("<alice-robot>", "<bob-cat>")
    for name in ("fused.safetensors", "fused.json"):
        assert (pulled / name).read_bytes() == (fused / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"word": "<dave-dog>"}, "calls alice/robot@1 <dave-dog>"),
        ({"words": ("<dave-dog>", "<alice-robot-class>")}, "<alice-robot> <dave-dog> <alice-robot-class>, expected"),
        ({"ref": "dave/dog@1", "word": "<dave-dog>"}, "knows dave/dog@1, of which it was not made"),
        ({"scale": 1e3}, "times the layer's own"),
    ],
)
def test_a_fusion_that_would_hijack_a_word_or_wreck_a_base_is_quarantined(
    registry: Registry,
    artifact: Callable[..., Path],
    facts: BaseFacts,
    tmp_path: Path,
    changes: dict[str, Any],
    because: str,
):
    path = artifact("robot")
    registry.publish(path, A, key=registry.new_owner("alice"), run_id="run-1")
    registry.index(bases=[facts])
    model = _fused([FusionSource(ref=A, edlora=read_artifact(path, facts))], facts, **changes)
    ref = registry.publish(write_fused(model, tmp_path / "x"), TRIO, key=registry.new_owner("carol"), run_id="fuse-1")
    assert registry.index(bases=[facts]).states == {"quarantined": 1}
    with pytest.raises(NotAllowedError, match=because):
        Registry.open(registry.url, home=tmp_path / "stranger").resolve(ref)


def test_withdrawn_consent_removes_the_bytes_and_names_the_fusions(registry: Registry, fused: Path):
    carol = registry.new_owner("carol")
    registry.publish(fused, TRIO, key=carol, run_id="fuse-1")
    registry.index()
    assert [str(row.ref) for row in registry.affected(ConceptRef("alice", "robot"))] == ["carol/trio@1"]
    assert registry.affected(ConceptRef("alice", "robot", 2)) == []
    registry.withdraw(A, "delete", registry.home.owner_key("alice"), "consent withdrawn")
    assert not list(registry.shelf.store.list("users/alice/blobs/"))
    registry.index()
    row = registry.shelf.catalogue().version(A)
    assert row is not None
    assert (row.state, row.title, row.search_text, row.reason) == ("deleted", "", "", "consent withdrawn")
    with pytest.raises(NotFoundError, match="consent withdrawn"):
        registry.resolve(A)
    assert [str(row.ref) for row in registry.affected(A)] == ["carol/trio@1"]


def test_a_fusion_of_a_fusion_is_affected_too(registry: Registry, fused: Path, facts: BaseFacts):
    carol = registry.new_owner("carol")
    trio = registry.publish(fused, TRIO, key=carol, run_id="fuse-1")
    files = {"weights": b"of four", "report": b"{}"}
    package = make_package("quartet", kind="fusion", files=files, words=(), class_word="", concept_kind="", rank=0)
    source = Source(ref=trio, manifest_sha256="0" * 64, weights_sha256="0" * 64)
    quartet = ConceptRef("carol", "quartet")
    registry.publish_package(package, quartet, carol, "fuse-2", Licence.named("cc0-1.0"), Details(), lineage=[source])
    registry.index(bases=[facts])
    assert [str(row.ref) for row in registry.affected(B)] == ["carol/quartet@1", "carol/trio@1"]


def test_a_client_that_asks_again_forgets_a_deleted_fusion_and_its_preview(
    registry: Registry, fused: Path, tmp_path: Path
):
    carol = registry.new_owner("carol")
    details = Details(previews=[write_picture(tmp_path / "trio.png", (9, 9, 9))])
    ref = registry.publish(fused, TRIO, key=carol, run_id="fuse-1", details=details)
    registry.index()
    stranger = Registry.open(registry.url, home=tmp_path / "stranger")
    found = stranger.resolve(ref)
    files = [*stranger.pull(found).iterdir(), *stranger.previews(found)]
    assert len(files) == 3
    registry.withdraw(ref, "delete", carol, "consent withdrawn")
    with pytest.raises(NotFoundError, match="consent withdrawn"):
        stranger.resolve(ref)
    assert [path for path in files if path.exists()] == []


def test_a_fusion_of_something_no_longer_there_is_not_published(registry: Registry, fused: Path):
    registry.withdraw(A, "delete", registry.home.owner_key("alice"), "consent withdrawn")
    with pytest.raises(NotFoundError, match="consent withdrawn"):
        registry.publish(fused, TRIO, key=registry.new_owner("carol"), run_id="fuse-1")
    assert registry.shelf.versions(TRIO) == []


def test_a_fusion_is_refused_when_a_source_changes_its_mind_to_forbid_merging(
    registry: Registry, artifact: Callable[..., Path], facts: BaseFacts, tmp_path: Path
):
    key = registry.new_owner("alice")
    path = artifact("robot")
    registry.publish(path, A, key=key, run_id="run-1", licence="cc-by-nd-4.0")
    registry.index(bases=[facts])
    model = _fused([FusionSource(ref=A, edlora=read_artifact(path, facts))], facts)
    with pytest.raises(LicenceError, match="forbids merging"):
        registry.publish(write_fused(model, tmp_path / "nd"), TRIO, key=registry.new_owner("carol"), run_id="fuse-1")


def test_bytes_that_another_version_shares_are_not_pulled_from_under_it(
    registry: Registry, artifact: Callable[..., Path]
):
    key = registry.new_owner("alice")
    path = artifact("robot")
    registry.publish(path, A, key=key, run_id="run-1")
    registry.publish(path, A, key=key, run_id="run-2")
    with pytest.raises(Exception, match="shares a file with alice/robot@2"):
        registry.withdraw(A, "delete", key)
    assert len(registry.withdraw(ConceptRef("alice", "robot"), "delete", key)) == 2
    assert not list(registry.shelf.store.list("users/alice/blobs/"))
