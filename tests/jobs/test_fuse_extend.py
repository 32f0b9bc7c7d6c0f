"""`mos fuse --extend FUSED --add ... --remove ...` on a registry: what fusing from scratch gives, and both times."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from jobs.cli import cli
from jobs.fuse_concepts import FusionTime, read_time, write_time
from jobs.recordings import note_recordings, recordings_of
from mos.artifact import write_artifact
from mos.base_model import load_base
from mos.concept import ConceptRef
from mos.errors import BadInputError, NotFoundError
from mos.fusion import BaseMismatchError, FusedModel, FusionConfig, FusionSource, fuse, read_fused, write_fused
from mos.random_concept import random_concept
from registry import Registry
from tests.bases import saved_random_base

NAMES = ("alice/robot", "bob/cat", "carol/house", "carol/mug")
QUICK = (
    "sampling_steps=2",
    "latent_seeds=[0]",
    'prompts=["photo of a {}", "{}"]',
    'generic_prompts=["", "a photo"]',
    "text_encoder={steps = 30, generic_weight = 0.03, ridge = 1e-3}",
    "cross_attention={steps = 30, generic_weight = 0.3, ridge = 1e-2}",
    "spatial={steps = 10, ridge = 1e-2}",
)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny base and a registry that lists four concepts of it."""
    monkeypatch.setenv("MOS_HOME", str(tmp_path / "home"))
    base = load_base(saved_random_base(tmp_path / "base"))
    registry = Registry.open(tmp_path / "registry", create=True)
    for seed, name in enumerate(NAMES):
        source = random_concept(base, name, seed)
        path = tmp_path / f"{seed}.safetensors"
        write_artifact(source.edlora, path)
        key = registry.new_owner(source.ref.owner)
        registry.publish(path, source.ref, key=key, run_id=f"run-{seed}", licence="cc0-1.0")
    registry.index()
    return tmp_path


def mos_fuse(shelf: Path, *words: str) -> str:
    places = ("--base", str(shelf / "base"), "--registry", str(shelf / "registry"), "--workers", "1")
    result = CliRunner().invoke(cli, ["fuse", *places, *words], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def fused_at(shelf: Path, name: str) -> FusedModel:
    return read_fused(shelf / name, load_base(shelf / "base").facts)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # three fusions, each with a Ray of its own
def test_adding_and_removing_equals_fusing_from_scratch_and_prints_both_times(shelf: Path) -> None:
    options = [word for option in QUICK for word in ("-o", option)]
    before, extended, scratch, cache = (str(shelf / name) for name in ("before", "extended", "scratch", "cache"))
    mos_fuse(shelf, "--from-registry", *NAMES[:3], "--out", before, "--cache", cache, *options)
    changes = ("--extend", before, "--add", NAMES[3], "--remove", NAMES[1])
    printed = mos_fuse(shelf, *changes, "--out", extended)  # its recordings are found where `before` kept them
    mos_fuse(shelf, NAMES[0], *NAMES[2:], "--out", scratch, *options)

    assert "<alice-robot> <carol-house> <carol-mug>" in printed
    times = {line.split()[0]: line for line in printed.splitlines()}
    assert "CPU s of recordings in the cache" in times["time"]
    assert f"{before}: " in times["before"]
    assert times["before"].endswith("s from scratch")
    noted = read_time(Path(extended))
    assert noted is not None
    assert noted.spared_seconds > 0

    first, second = fused_at(shelf, "extended"), fused_at(shelf, "scratch")
    assert first.sources == second.sources
    assert [source.ref for source in first.sources] == ["alice/robot@1", "carol/house@1", "carol/mug@1"]
    for component, updates in second.adapter.linears.items():
        for name, update in updates.items():
            wanted, found = update.delta(), first.adapter.linears[component][name].delta()
            assert torch.linalg.norm(found - wanted) <= 1e-6 * torch.linalg.norm(wanted), name


def test_times_are_read_back_and_a_folder_without_them_has_none(tmp_path: Path) -> None:
    assert read_time(tmp_path) is None
    write_time(tmp_path, FusionTime(seconds=2.5, spared_seconds=1.25))
    assert read_time(tmp_path) == FusionTime(seconds=2.5, spared_seconds=1.25)
    for content in (json.dumps({"minutes": 1}), "[1]", "{"):
        (tmp_path / "fused.times.json").write_text(content)
        assert read_time(tmp_path) is None


def test_recordings_are_found_by_what_was_fused_and_only_by_who_fused_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOS_HOME", str(tmp_path / "home"))
    out, cache = tmp_path / "out", tmp_path / "cache"
    out.mkdir()
    assert recordings_of(out) is None
    (out / "fused.safetensors").write_bytes(b"weights")
    assert recordings_of(out) is None
    note_recordings(out, cache)
    assert recordings_of(out) is None
    cache.mkdir()
    assert recordings_of(out) == cache
    out.rename(tmp_path / "moved")
    assert recordings_of(tmp_path / "moved") == cache
    monkeypatch.setenv("MOS_HOME", str(tmp_path / "somebody else"))
    assert recordings_of(tmp_path / "moved") is None
    (tmp_path / "moved/fused.safetensors").write_bytes(b"other weights")
    monkeypatch.setenv("MOS_HOME", str(tmp_path / "home"))
    assert recordings_of(tmp_path / "moved") is None


def test_what_cannot_be_fused_is_named_before_anything_starts(shelf: Path) -> None:
    saved_random_base(shelf / "another", seed=1)
    out = ("--out", str(shelf / "out"))
    with pytest.raises(BaseMismatchError, match=r"^alice/robot@1: trained on .*--allow-base-mismatch"):
        mos_fuse(shelf, *NAMES[:2], *out, "--base", str(shelf / "another"))
    with pytest.raises(NotFoundError, match=r"^alice/dragon: no such concept"):
        mos_fuse(shelf, "alice/dragon", *out)
    base, registry = load_base(shelf / "base"), Registry.open(shelf / "registry")
    found = [registry.resolve(name) for name in NAMES[:2]]
    sources = [
        FusionSource(
            ref=item.ref,
            edlora=random_concept(base, NAMES[seed], seed).edlora,
            sha256=item.manifest.weights.sha256,
        )
        for seed, item in enumerate(found)
    ]
    both = write_fused(fuse(base, sources, FusionConfig(strategy="average")), shelf / "both")
    registry.publish(both, ConceptRef("alice", "both"), key=registry.home.owner_key("alice"), run_id="run-both")
    registry.index()
    with pytest.raises(BadInputError, match=r"^alice/both@1: is a fusion .*: alice/robot@1, bob/cat@1$"):
        mos_fuse(shelf, "alice/both", NAMES[2], *out)
    assert not (shelf / "out").exists()
