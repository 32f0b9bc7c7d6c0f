"""`mos concept`, `mos registry` and `mos owner` as a person uses them, on a directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from cluster.evaluation import score_store
from jobs.cli import cli
from mos.artifact import write_artifact
from mos.errors import MosError
from mos.evaluation.results import PictureScore
from registry.documents import sha256_hex
from tests.registry.world import make_edlora, tiny_facts, write_picture

Mos = Callable[..., str]


@pytest.fixture
def mos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mos:
    """Run a command line; returns stdout, raises what main would print."""
    monkeypatch.setenv("MOS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MOS_REGISTRY", str(tmp_path / "shelf"))

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return run


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "robot.safetensors"
    write_artifact(make_edlora(tiny_facts()), path)
    return path


def _json(text: str) -> Any:
    return json.loads(text)


def _founded(mos: Mos, *owners: str) -> None:
    mos("registry", "init")
    for owner in owners:
        mos("owner", "new", owner)
        mos("owner", "enrol", owner)


def test_a_concept_goes_from_file_to_listing_and_back(mos: Mos, weights: Path, tmp_path: Path):
    _founded(mos, "alice")
    preview = write_picture(tmp_path / "p.png", (255, 0, 0))
    line = mos("concept", "publish", weights, "alice/robot", "--tag", "tin", "--preview", preview)
    assert line == "alice/robot@1 listed (cc-by-4.0)\n"
    assert mos("concept", "publish", weights, "alice/robot").startswith("alice/robot@1 listed")
    assert mos("concept", "ls").split()[:3] == ["alice/robot@1", "listed", "<alice-robot>"]
    (row,) = _json(mos("concept", "search", "tin", "--mergeable", "--json"))
    assert (row["ref"], row["licence"], row["num_persons"]) == ("alice/robot@1", "cc-by-4.0", 0)
    shown = _json(mos("concept", "show", "alice/robot", "--json"))
    assert (shown["state"], shown["class_word"], shown["tags"]) == ("listed", "robot", ["tin"])
    entry = _json(mos("concept", "resolve", "alice/robot", "--json"))
    digests = [shown["manifest_sha256"], sha256_hex(weights.read_bytes())]
    assert [entry["ref"], entry["manifest_sha256"], entry["weights_sha256"]] == ["alice/robot@1", *digests]
    assert mos("concept", "resolve", "alice/robot").split() == ["alice/robot@1", *digests]
    out = mos("concept", "pull", "alice/robot", "--out", tmp_path / "copy.safetensors").strip()
    assert Path(out).read_bytes() == weights.read_bytes()
    assert mos("concept", "verify", "alice/robot") == "1 versions read, 0 complaints\n"
    with pytest.raises(MosError, match="not in the catalogue"):
        mos("concept", "verify", "alice/robbot")
    assert mos("registry", "verify") == "1 versions read, 0 complaints\n"


def test_yank_delete_and_affected_are_seen_at_once(mos: Mos, weights: Path):
    _founded(mos, "alice")
    mos("concept", "publish", weights, "alice/robot")
    mos("concept", "yank", "alice/robot", "--reason", "blurred")
    assert mos("concept", "ls") == ""
    assert "yanked" in mos("concept", "ls", "--all")
    mos("concept", "unyank", "alice/robot")
    assert "listed" in mos("concept", "ls")
    assert mos("registry", "affected", "alice/robot") == ""
    assert mos("concept", "delete", "alice/robot", "--reason", "consent withdrawn", "--yes") == "alice/robot@1 delete\n"
    with pytest.raises(MosError, match="consent withdrawn") as caught:
        mos("concept", "pull", "alice/robot@1")
    assert caught.value.exit_code == 4


def test_with_a_concept_go_the_pictures_drawn_of_it_for_evaluations(mos: Mos, weights: Path, tmp_path: Path):
    _founded(mos, "alice")
    mos("concept", "publish", weights, "alice/robot")
    stores = [score_store(str(tmp_path / "shelf"), digest * 64) for digest in "ab"]
    drawn = [
        ("alice/robot@1", "alice/robot@1"),
        ("alice/robot@1", ""),
        ("fused", "alice/robot@1"),
        ("fused", "bob/cat@1"),
    ]
    for store in stores:
        for number, (model, concept) in enumerate(drawn):
            score = PictureScore(method="any", model=model, concept=concept, prompt="a house", seed=1, scores={})
            store.write(f"block-{number}", [score, score], [Image.new("RGB", (8, 8))] * 2)
    assert _json(mos("concept", "delete", "alice/robot", "--yes", "--json"))["num_pictures"] == 12
    for store in stores:
        assert [row.score.concept for row in store.read()] == ["bob/cat@1", "bob/cat@1"]


def test_what_changes_something_says_so_in_json_too(mos: Mos, weights: Path, tmp_path: Path):
    _founded(mos, "alice")
    mos("concept", "publish", weights, "alice/robot")
    changed = ["alice/robot@1"]
    assert _json(mos("concept", "yank", "alice/robot", "--json")) == {"action": "yank", "refs": changed}
    assert _json(mos("concept", "unyank", "alice/robot@1", "--json")) == {"action": "unyank", "refs": changed}
    assert _json(mos("registry", "approve", "alice/robot@1", "--json")) == {"action": "approve", "refs": changed}
    deleted = _json(mos("concept", "delete", "alice/robot", "--yes", "--json"))
    assert deleted == {"action": "delete", "refs": changed, "affected": [], "num_pictures": 0}
    cluster = _json(mos("owner", "new", "cluster", "--json"))["public_key"]
    grant = tmp_path / "grant.json"
    terms = ("--run-id", "run-1", "--spec-sha256", "0" * 64, "--publisher", cluster, "--out", grant)
    granted = _json(mos("owner", "grant", "alice/robot", *terms, "--json"))
    assert (granted["ref"], granted["run_id"], granted["path"]) == ("alice/robot", "run-1", str(grant))
    assert grant.is_file()
    assert _json(mos("registry", "forget", tmp_path / "shelf", "--json"))["forgotten"] is True


def test_every_command_of_the_three_groups_takes_json():
    groups = [cli.get_command(click.Context(cli), name) for name in ("concept", "registry", "owner")]
    commands = [command for group in groups if isinstance(group, click.Group) for command in group.commands.values()]
    assert len(commands) >= 25
    assert [one.name for one in commands if not any("--json" in option.opts for option in one.params)] == []


def test_a_licence_that_forbids_it_and_a_person_without_consent(mos: Mos, weights: Path, tmp_path: Path):
    _founded(mos, "alice")
    with pytest.raises(MosError, match="expected one of") as caught:
        mos("concept", "publish", weights, "alice/robot", "--licence", "wtf")
    assert caught.value.exit_code == 3
    assert "no consent is recorded" in mos("concept", "publish", weights, "alice/robot", "--person", "Ann")
    record = tmp_path / "consent.txt"
    record.write_text("Ann agrees")
    line = mos("concept", "publish", weights, "alice/robot", "--run-id", "r2", "--person", "Ann", "--consent", record)
    assert line.startswith("alice/robot@2 listed")


def test_keys_rotate_and_old_versions_stay_listed(mos: Mos, weights: Path):
    _founded(mos, "alice")
    mos("concept", "publish", weights, "alice/robot")
    mos("owner", "rotate", "alice")
    assert [key["status"] for key in _json(mos("owner", "show", "alice", "--json"))["keys"]] == ["retired", "active"]
    assert mos("concept", "publish", weights, "alice/robot", "--run-id", "r2").startswith("alice/robot@2 listed")
    mos("registry", "rebuild")
    assert mos("concept", "ls", "--all").count("listed") == 2
    mos("owner", "suspend", "alice")
    assert mos("concept", "ls") == ""
    mos("owner", "suspend", "alice", "--lift")
    assert "listed" in mos("concept", "ls")


def test_a_revoked_key_publishes_no_more(mos: Mos, weights: Path):
    _founded(mos, "alice")
    mos("concept", "publish", weights, "alice/robot")
    (key,) = _json(mos("owner", "revoke", "alice", "--json"))["keys"]
    assert key["status"] == "revoked"
    with pytest.raises(MosError, match="not the one enrolled") as caught:
        mos("concept", "publish", weights, "alice/robot", "--run-id", "r2")
    assert caught.value.exit_code == 6
    assert mos("concept", "verify", "alice/robot") == "1 versions read, 0 complaints\n"  # seen before it was revoked


def test_what_forbids_merging_is_not_fused(mos: Mos, weights: Path, tmp_path: Path):
    _founded(mos, "alice")
    mos("concept", "publish", weights, "alice/robot", "--licence", "cc-by-nd-4.0")
    with pytest.raises(MosError, match=r"alice/robot@1: its licence cc-by-nd-4\.0 forbids merging") as caught:
        mos("fuse", "--from-registry", "alice/robot", "--out", tmp_path / "fused")
    assert caught.value.exit_code == 6
    assert not (tmp_path / "fused").exists()


def test_a_picture_and_a_prompt_find_what_looks_like_them(mos: Mos, tmp_path: Path):
    """With the small world's own scorer, which knows colours."""
    _founded(mos, "alice")
    for name, colour in {"rose": (220, 30, 30), "sky": (40, 80, 220)}.items():
        path = tmp_path / f"{name}.safetensors"
        write_artifact(make_edlora(tiny_facts(), name=name), path)
        preview = write_picture(tmp_path / f"{name}.png", colour)
        mos("concept", "publish", path, f"alice/{name}", "--preview", preview)
    with pytest.raises(MosError, match="mos registry index --embed"):
        mos("concept", "search", "--like", tmp_path / "sky.png")
    mos("registry", "index", "--embed")
    for name in ("rose", "sky"):
        found = _json(mos("concept", "search", "--like", tmp_path / f"{name}.png", "--json"))
        assert found[0]["concept"] == name
        assert found[0]["similarity"] > 0.99 > found[1]["similarity"]
    words = {"rose": "a red house", "sky": "a blue house"}
    closeness = {
        name: {row["concept"]: row["similarity"] for row in _json(mos("concept", "search", "--prompt", text, "--json"))}
        for name, text in words.items()
    }
    assert closeness["rose"]["rose"] - closeness["rose"]["sky"] > closeness["sky"]["rose"] - closeness["sky"]["sky"]


def test_registry_administration(mos: Mos, weights: Path):
    _founded(mos, "alice")
    mos("concept", "publish", weights, "alice/robot", "--no-index")
    assert mos("registry", "index").startswith("catalogue 1: 1 examined, 1 changed (1 listed)")
    assert mos("registry", "index", "--sweep").startswith("catalogue 1: 0 examined")
    shown = _json(mos("registry", "show", "--json"))
    assert (shown["catalogue"], shown["num_versions"]) == (1, 1)
    assert _json(mos("registry", "gc", "--dry-run", "--json"))["keys"] == []
    with pytest.raises(MosError, match="a registry is there already") as caught:
        mos("registry", "init")
    assert caught.value.exit_code == 5


def test_a_name_that_looks_like_another_owners_is_refused(mos: Mos):
    _founded(mos, "bob")
    mos("owner", "new", "b0b")
    with pytest.raises(MosError, match="looks like 'bob'") as caught:
        mos("owner", "enrol", "b0b")
    assert caught.value.exit_code == 7


def test_policies_are_printed_for_s3_and_refused_for_a_directory(mos: Mos):
    policies = _json(mos("registry", "init", "s3://shelf/mos", "--policy", "--owner", "alice"))
    alice = policies["identity_policies"]["owner-alice"]["Statement"]
    writes = next(one for one in alice if one["Sid"] == "WriteAlice")["Resource"]
    assert writes == ["arn:aws:s3:::shelf/mos/users/alice/*", "arn:aws:s3:::shelf/mos/inbox/alice/*"]
    with pytest.raises(MosError, match="file permissions") as caught:
        mos("registry", "init", "--policy")
    assert caught.value.exit_code == 2


def test_missing_things_are_one_line_with_their_exit_code(mos: Mos, tmp_path: Path):
    for arguments, code in [
        (("concept", "ls"), 4),
        (("registry", "index"), 4),
        (("concept", "show", "not a ref"), 4),
    ]:
        with pytest.raises(MosError) as caught:
            mos(*arguments)
        assert caught.value.exit_code == code
        assert "\n" not in str(caught.value)
    _founded(mos, "alice")
    with pytest.raises(MosError, match="no such concept"):
        mos("concept", "show", "alice/ghost")
    with pytest.raises(MosError, match="nothing there"):
        mos("concept", "publish", tmp_path / "nowhere", "alice/robot")
    with pytest.raises(click.ClickException):
        mos("concept", "nonsense")
