"""Verified evaluations: signed by the evaluator over recomputed rows, shown by show and search, never claimed."""

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.cli import cli
from mos.artifact import write_artifact
from mos.concept import ConceptRef
from mos.errors import BadInputError, NotAllowedError, NotFoundError
from mos.fusion import FusionConfig, FusionSource, fuse, write_fused
from mos.random_base import random_base
from registry import Registry
from registry.attestation import Attestation, Score, attestation_prefix, read_attestations, write_attestation
from registry.errors import FormatError, SignatureError
from registry.keys import SigningKey
from tests.mos.artifacts import random_edlora
from tests.mos.evaluation.conftest import write_scorer
from tests.mos.test_base_model import save

SUITE = """
name = "one"
generic = ["a dog"]
[families]
place = ["a <TOK> on the beach", "a <TOK> in the city"]
"""
SCORE = Score(mean=0.5, low=0.4, high=0.6, count=9)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A registry with two concepts and their fusion, evaluated once."""
    folder = tmp_path_factory.mktemp("shelf")
    base = random_base("sd1")
    (folder / "base").mkdir()
    save(base, folder / "base")
    write_scorer(folder / "scorer")
    (folder / "suite.toml").write_text(SUITE)
    sources = []
    for seed, name in enumerate(("robot", "cat"), start=1):
        edlora = random_edlora(base, name=name, seed=seed)
        write_artifact(edlora, folder / f"{name}.safetensors")
        sources.append(FusionSource(ref=ConceptRef("alice", name, 1), edlora=edlora))
    write_fused(fuse(base, sources, FusionConfig(strategy="average")), folder / "fused")
    mos = runner(folder)
    mos("registry", "init")
    mos("owner", "new", "alice")
    mos("owner", "enrol", "alice")
    for name in ("robot", "cat"):
        mos("concept", "publish", folder / f"{name}.safetensors", f"alice/{name}")
    mos("concept", "publish", folder / "fused", "alice/both")
    mos(
        "submit", "evaluation", "alice/robot", "alice/cat", "alice/both", "--no-ray", "--suite", folder / "suite.toml",
        "--seeds", "1", "--steps", "1", "--guidance", "1", "--base", folder / "base", "--scorer", folder / "scorer",
    )  # fmt: skip
    return folder


def runner(folder: Path):
    environment = {"MOS_HOME": str(folder / "home"), "MOS_REGISTRY": str(folder / "registry")}

    def run(*arguments: object) -> str:
        found = CliRunner().invoke(cli, [str(item) for item in arguments], standalone_mode=False, env=environment)
        if found.exception is not None:
            raise found.exception
        return found.stdout

    return run


@pytest.fixture
def mos(shelf):
    return runner(shelf)


@pytest.fixture
def digest(mos) -> str:
    (line,) = json.loads(mos("evaluation", "show", "--json"))
    return line["digest"]


def test_signed_scores_are_shown_by_show_and_search_with_the_change_a_fusion_made(mos, shelf, digest):
    before = json.loads(mos("concept", "show", "alice/robot", "--json"))
    assert before["evaluation"] == {}
    signed = json.loads(
        mos("evaluation", "sign", digest, "alice/robot", "alice/both", "--base", shelf / "base", "--json")
    )
    assert [line["pictures"] for line in signed] == [3, 5]
    shown = json.loads(mos("concept", "show", "alice/robot", "--json"))["evaluation"]
    rows = json.loads(mos("evaluation", "show", digest, "--by", "model", "--json"))["cells"]
    cell = next(cell for cell in rows if cell["method"] == "alice/robot@1")
    assert shown["scores"]["text_alignment"]["mean"] == pytest.approx(cell["scores"]["text_alignment"]["mean"])
    assert shown["changes"] == {}
    fused = json.loads(mos("concept", "show", "alice/both", "--json"))["evaluation"]
    assert set(fused["changes"]) == {"alice/robot@1", "alice/cat@1"}
    assert "text_alignment" in fused["changes"]["alice/cat@1"]
    assert "verified: text" in mos("concept", "search", "robot")
    assert "verified: text" in mos("concept", "show", "alice/robot")


def test_a_version_that_was_not_drawn_with_is_not_signed(mos, shelf, digest, tmp_path):
    write_artifact(random_edlora(random_base("sd1"), name="dog", seed=9), tmp_path / "dog.safetensors")
    mos("concept", "publish", tmp_path / "dog.safetensors", "alice/dog")
    with pytest.raises(NotFoundError, match="no picture drawn with its weights"):
        mos("evaluation", "sign", digest, "alice/dog", "--base", shelf / "base")


def test_only_the_evaluator_may_sign(shelf, digest, tmp_path):
    environment = {"MOS_HOME": str(tmp_path), "MOS_REGISTRY": str(shelf / "registry")}
    found = CliRunner().invoke(
        cli, ["evaluation", "sign", digest, "alice/robot"], standalone_mode=False, env=environment
    )
    assert isinstance(found.exception, NotAllowedError)
    assert "indexer's key" in str(found.exception)


def attestation(registry: Registry, name: str = "cat") -> Attestation:
    found = registry.resolve(f"alice/{name}")
    return Attestation(
        ref=found.ref,
        weights_sha256=found.weights_sha256,
        evaluation="ab" * 32,
        suite="one",
        scores={"probe_identity": SCORE},
        changes={},
        created_at="2026-01-01T00:00:00Z",
    )


def test_what_an_owner_or_a_stranger_signs_is_named_and_not_believed(mos, shelf):
    registry = Registry.open(shelf / "registry", home=shelf / "home")
    claimed = attestation(registry)
    for key in (SigningKey.generate("stranger"), registry.home.owner_key("alice")):
        write_attestation(registry.shelf.store, claimed, key)
    found, refused = read_attestations(
        registry.shelf.store, claimed.ref, claimed.weights_sha256, registry.record.indexer
    )
    assert found == []
    assert len(refused) == 2
    shown = json.loads(mos("concept", "show", "alice/cat", "--json"))["evaluation"]
    assert "scores" not in shown
    assert len(shown["not_believed"]) == 2


def test_a_document_moved_to_another_version_is_not_believed(shelf):
    registry = Registry.open(shelf / "registry", home=shelf / "home")
    key = registry.home.registry_key(registry.record.registry_id, "indexer")
    true = attestation(registry, "both")
    name = write_attestation(registry.shelf.store, true, key)
    moved = attestation_prefix(ConceptRef("alice", "cat", 1)) + name.rpartition("/")[2]
    registry.shelf.store.put(moved, registry.shelf.store.get(name))
    cat = attestation(registry)
    _, refused = read_attestations(registry.shelf.store, cat.ref, cat.weights_sha256, registry.record.indexer)
    assert any("not about this version" in line for line in refused)


def test_a_document_survives_the_round_trip_and_a_changed_byte_does_not():
    key = SigningKey.generate("indexer")
    made = Attestation(
        ref=ConceptRef("a", "b", 3), weights_sha256="cd" * 32, evaluation="ab" * 32, suite="s",
        scores={"drift": SCORE}, changes={"c/d@1": {"drift": SCORE}}, created_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    data = made.seal(key)
    assert Attestation.from_bytes(data, key.public, "it") == made
    with pytest.raises(SignatureError):
        Attestation.from_bytes(data, SigningKey.generate("other").public, "it")
    envelope = json.loads(data)
    envelope["payload"] = envelope["payload"][:-8] + "AAAA" + envelope["payload"][-4:]
    with pytest.raises((SignatureError, FormatError)):
        Attestation.from_bytes(json.dumps(envelope).encode(), key.public, "it")
    with pytest.raises(BadInputError, match="metric"):
        dataclasses.replace(made, scores={"../x": SCORE}).seal(key)
