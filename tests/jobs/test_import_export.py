"""`mos import` and `mos export` as a person uses them."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from jobs.cli import cli
from mos.artifact import read_artifact, write_artifact
from mos.concept import ConceptRef
from mos.errors import BadInputError, NotAllowedError
from mos.formats.source import ImportFormatError
from mos.fusion import FusionConfig, FusionSource, fuse, write_fused
from mos.random_base import random_base
from tests.mos.formats.concepts import assert_same_concept, random_concept
from tests.mos.formats.pipelines import pipeline_of
from tests.registry.world import write_picture


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A base, a concept's file and a fused directory."""
    folder = tmp_path_factory.mktemp("shelf")
    base = random_base("sd1")
    pipeline_of(base).save_pretrained(folder / "base")
    sources = []
    for seed, name in enumerate(("alice/tom", "bob/rex")):
        edlora = random_concept(base, seed=seed)
        ref = ConceptRef.parse(f"{name}@1")
        write_artifact(edlora, folder / f"{ref.name}.safetensors")
        sources.append(FusionSource(ref=ref, edlora=edlora))
    write_fused(fuse(base, sources, FusionConfig(strategy="sum")), folder / "fused")
    return folder, base


@pytest.fixture
def mos(shelf, tmp_path, monkeypatch):
    """Run a command line in an empty folder; returns (stdout, stderr), raises what main would print."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MOS_REGISTRY", str(tmp_path / "registry"))

    def run(*arguments):
        words = [str(argument) for argument in arguments]
        if words[0] in ("import", "export"):
            words += ["--base", str(shelf[0] / "base")]
        result = CliRunner().invoke(cli, words, standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result.stdout, result.stderr

    return run


def test_a_concept_goes_to_diffusers_and_comes_back_the_same_file(mos, shelf, tmp_path):
    source = shelf[0] / "tom.safetensors"
    printed, said = mos("export", f"alice/tom={source}", "--to", "diffusers", "--out", tmp_path / "out")
    files = [Path(line) for line in printed.split()]
    assert [file.name for file in files] == [
        "pytorch_lora_weights.safetensors", "alice-tom.safetensors", "README.md",
    ]  # fmt: skip
    assert "<tom-rand> (text_encoder): the layer mean has cosine 0." in said
    assert 'pipe("a photo of <alice-tom>")' in said
    back, report = mos("import", tmp_path / "out", "--out", "back.safetensors", "--name", "tom")
    assert back == "back.safetensors\n"
    assert "0 keys" not in report
    assert Path("back.safetensors").read_bytes() == source.read_bytes()


def test_the_commands_targets_are_those_the_exporter_knows():
    from jobs.commands.exporting import TARGETS as offered
    from mos.formats.exporting import TARGETS as known

    assert offered == known


def test_a_fused_model_goes_to_every_tool(mos, shelf, tmp_path):
    for target, expected in {
        "diffusers": "pytorch_lora_weights.safetensors",
        "kohya": "fused.safetensors",
        "a1111": "models/Lora/fused.safetensors",
        "comfyui": "models/loras/fused.safetensors",
        "mixofshow": "new_concept_cfg.json",
        "merged": "model_index.json",
    }.items():
        out = tmp_path / target
        data = json.loads(mos("export", shelf[0] / "fused", "--to", target, "--out", out, "--json")[0])
        assert (out / expected).is_file()
        assert str(out / expected) in data["files"]
        assert len(data["losses"]) == (0 if target == "mixofshow" else 4)
        assert (out / "README.md").is_file()
    lora = load_file(tmp_path / "kohya" / "fused.safetensors")
    assert {value.shape[0] for key, value in lora.items() if key.endswith("lora_down.weight")} == {4}
    sidecar = json.loads((tmp_path / "a1111" / "models" / "Lora" / "fused.json").read_text())
    assert sidecar["activation text"] == "alice-tom bob-rex"
    assert sidecar["sd version"] == "SD1"


def test_the_model_card_has_front_matter_previews_and_the_recipe(mos, shelf, tmp_path):
    preview = write_picture(tmp_path / "p.png", (255, 0, 0))
    source = shelf[0] / "tom.safetensors"
    mos(
        "export", f"alice/tom={source}", "--to", "kohya", "--out", "out", "--preview", preview, "--licence", "cc-by-4.0"
    )
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    lines = front.splitlines()
    assert 'license: "cc-by-4.0"' in lines
    assert any(line.startswith("base_model: ") for line in lines)
    assert 'instance_prompt: "a photo of <alice-tom>"' in lines
    assert '- text: "a photo of <alice-tom>"' in lines
    assert '    url: "alice-tom-0.png"' in lines
    assert '- "ed-lora"' in lines
    assert (tmp_path / "out" / "alice-tom-0.png").read_bytes() == preview.read_bytes()
    assert "| steps | 500 |" in body
    assert "What this format could not hold" in body
    assert "&lt;" not in front


def test_a_published_concept_is_exported_with_its_licence_and_preview(mos, shelf, tmp_path):
    preview = write_picture(tmp_path / "p.png", (0, 255, 0))
    mos("registry", "init")
    mos("owner", "new", "alice")
    mos("owner", "enrol", "alice")
    for name, licence in (("tom", "cc-by-4.0"), ("max", "cc-by-nd-4.0")):
        source = shelf[0] / "tom.safetensors"
        mos("concept", "publish", source, f"alice/{name}", "--preview", preview, "--licence", licence, "--credit", "Al")
    mos("export", "alice/tom", "--to", "merged", "--out", "out", "--allow-unlisted")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "cc-by-4.0. Credit: Al." in card
    assert (tmp_path / "out" / "alice-tom-0.png").is_file()
    with pytest.raises(NotAllowedError, match="allows no derivatives"):
        mos("export", "alice/max", "--to", "merged", "--out", "out2", "--allow-unlisted")


def test_importing_says_what_matched_and_what_did_not(mos, shelf, tmp_path):
    edlora = random_concept(shelf[1])
    mos("export", f"alice/tom={shelf[0] / 'tom.safetensors'}", "--to", "kohya", "--out", "out")
    tensors = load_file("out/alice-tom.safetensors") | {"lora_unet_conv_in.lora_down.weight": torch.zeros(2, 4, 3, 3)}
    save_file(tensors, "odd.safetensors")
    printed, said = mos("import", "odd.safetensors", "--class-word", "cat", "--kind", "pet", "--json")
    data = json.loads(printed)
    assert data["unmatched"] == ["lora_unet_conv_in.lora_down.weight"]
    assert data["matched"] == {name: len(layers) for name, layers in edlora.linears.items()}
    assert_same_concept(read_artifact(data["path"], shelf[1].facts), edlora, words=False)
    _, said = mos("import", "odd.safetensors", "--class-word", "cat", "--out", "again.safetensors")
    assert "1 keys not used: lora_unet_conv_in.lora_down.weight" in said
    with pytest.raises(BadInputError, match="1 keys not used"):
        mos("import", "odd.safetensors", "--class-word", "cat", "--strict", "--out", "strict.safetensors")
    assert not Path("strict.safetensors").exists()


def test_a_file_that_is_not_a_safe_artifact_leaves_nothing(mos, tmp_path):
    save_file({"emb_params": torch.full((2, 16), 1000.0)}, "wild.safetensors")
    with pytest.raises(BadInputError, match=r"wild\.mos\.safetensors: a word embedding of text_encoder has norm"):
        mos("import", "wild.safetensors", "--class-word", "cat", "--name", "wild", "--out", "wild.mos.safetensors")
    Path("text.safetensors").write_text("hello world, hello world")
    with pytest.raises(ImportFormatError, match="neither safetensors nor a PyTorch file"):
        mos("import", "text.safetensors", "--class-word", "cat")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.safetensors", "wild.safetensors"]


def test_the_class_is_asked_for_where_the_file_does_not_say(mos):
    save_file({"emb_params": torch.full((2, 16), 0.01)}, "words.safetensors")
    with pytest.raises(BadInputError, match="--class-word"):
        mos("import", "words.safetensors")
    with pytest.raises(BadInputError, match="nothing to export"):
        mos("export", "base", "--to", "kohya")
