"""`mos fuse --extend`: concepts and options start from a fused model."""

from pathlib import Path

import pytest

from jobs.commands.fuse import _extended, _with_scales
from jobs.submission import parse_options
from mos.errors import BadInputError, UsageError
from mos.fusion import FusionConfig, StageRule, fuse, write_fused
from mos.random_base import random_base
from mos.random_concept import random_concept


def test_extend_takes_concepts_and_options_of_the_model(tmp_path: Path) -> None:
    base = random_base()
    sources = [random_concept(base, name, seed) for seed, name in enumerate(("alice/robot@1", "bob/cat@2"))]
    config = FusionConfig(
        strategy="sum", solver="exact", spatial=StageRule(steps=7, ridge=0.01), latent_seeds=(4, 5), prompts=("a {}",)
    )
    model = write_fused(fuse(base, sources, config), tmp_path / "fused")
    concepts, options = _extended(model, (), ("carol/mug",), ("bob/cat",), ("sampling_steps=3",))
    assert concepts == ("alice/robot@1", "carol/mug")
    found = FusionConfig.from_json(FusionConfig().to_json() | parse_options(options))
    assert found.to_json() == config.to_json() | {"sampling_steps": 3}


def test_extend_keeps_the_scales_of_those_who_stay(tmp_path: Path) -> None:
    base = random_base()
    sources = [random_concept(base, name, seed) for seed, name in enumerate(("alice/robot@1", "bob/cat@2"))]
    config = FusionConfig(strategy="sum", scales={"alice/robot": 0.5, "bob/cat": {"unet": 0.25}})
    model = write_fused(fuse(base, sources, config), tmp_path / "fused")
    _, options = _extended(model, (), (), ("bob/cat",), ())
    assert parse_options(options)["scales"] == {"alice/robot": 0.5}
    _, options = _extended(model, (), (), (), ())
    assert parse_options(_with_scales(options, ("alice/robot=2", "carol/mug@3=0.5,1")))["scales"] == {
        "alice/robot": 2.0,
        "bob/cat": {"unet": 0.25},
        "carol/mug": {"text_encoder": 0.5, "text_encoder_2": 0.5, "unet": 1.0},
    }


@pytest.mark.parametrize("text", ["alice/robot", "alice/robot=", "alice/robot=much", "alice/robot=1,2,3"])
def test_a_scale_is_a_concept_and_a_number(text: str) -> None:
    with pytest.raises(UsageError, match="expected OWNER/NAME=FACTOR"):
        _with_scales((), (text,))
    with pytest.raises(BadInputError, match="scales"):
        FusionConfig.from_json(parse_options(_with_scales((), ("alice/robot=11",))))


def test_add_and_remove_need_a_model() -> None:
    with pytest.raises(UsageError, match="--extend"):
        _extended(None, ("alice/robot",), ("bob/cat",), (), ())
    with pytest.raises(UsageError, match="--add"):
        _extended(Path("fused"), ("alice/robot",), (), (), ())
