"""The whole fusion on a tiny random base."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mos.base_model import BaseModel, fingerprint
from mos.concept import ConceptRef
from mos.edlora.adapter import Adapter, applied
from mos.edlora.tokens import PromptEncoder
from mos.errors import BadInputError, ConflictError
from mos.fusion import (
    BaseMismatchError,
    FusedModel,
    FusionConfig,
    FusionError,
    FusionSource,
    SerialExecutor,
    SiteProblem,
    SiteSolution,
    Stage,
    StageRule,
    StageStatistics,
    fuse,
    measure_fusion,
    plan_bins,
    plan_stages,
    site_cost,
    write_fused,
)
from mos.random_concept import random_concept

MakeConfig = Callable[..., FusionConfig]


def updates_of(model: FusedModel) -> dict[str, np.ndarray]:
    return {
        f"{component}/{name}": update.delta().numpy()
        for component, updates in model.adapter.linears.items()
        for name, update in updates.items()
    }


def files_of(model: FusedModel, directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(write_fused(model, directory).iterdir())}


def test_the_order_of_concepts_changes_no_byte(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig, tmp_path: Path
) -> None:
    first = files_of(fuse(base, sources, make_config()), tmp_path / "a")
    second = files_of(fuse(base, sources[::-1], make_config()), tmp_path / "b")
    assert first == second
    assert set(first) == {"fused.safetensors", "fused.json"}


def test_the_base_is_bit_equal_after_a_fusion(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig
) -> None:
    fuse(base, sources, make_config())
    assert fingerprint(base.unet) == base.facts.fingerprint["unet"]
    assert fingerprint(base.text_encoder) == base.facts.fingerprint["text_encoder"]
    assert not any(module._forward_pre_hooks for module in base.unet.modules())


def test_one_concept_alone_is_reproduced(base: BaseModel, sources: list[FusionSource], make_config: MakeConfig) -> None:
    exact = StageRule(steps=500)
    config = make_config(
        text_encoder=exact, cross_attention=exact, spatial=exact, solver="exact", latent_seeds=(0, 1), sampling_steps=4
    )
    model = fuse(base, sources[:1], config)
    for stage in model.report["stages"].values():
        assert stage["concepts"]["alice/robot@1"]["fit"] < 1e-4
    with applied(base, model.adapter):
        fused = PromptEncoder(base, model.adapter.vocabulary).encode(["photo of a <alice-robot>"]).context
    alone = sources[0].edlora.adapter(sources[0].ref)
    with applied(base, alone):
        own = PromptEncoder(base, alone.vocabulary).encode(["photo of a <alice-robot>"]).context
    end = 6
    assert torch.allclose(fused[:, :, :end], own[:, :, :end], atol=1e-3)


def test_every_tuned_layer_belongs_to_one_stage(base: BaseModel, sources: list[FusionSource]) -> None:
    stages = plan_stages(base, sources)
    assert [stage.name for stage in stages] == ["text-encoder", "cross-attention", "spatial"]
    layers = [layer for stage in stages for layer in stage.linears()]
    tuned = sum(len(updates) for updates in sources[0].edlora.linears.values())
    assert len(layers) == len(set(layers)) == tuned


def test_equal_words_of_two_owners_live_together(base: BaseModel, make_config: MakeConfig) -> None:
    twins = [random_concept(base, name, seed) for seed, name in enumerate(("alice/cat@1", "bob/cat@1"))]
    model = fuse(base, twins, make_config())
    assert model.words == ("<alice-cat>", "<bob-cat>")
    assert [concept.words for concept in model.adapter.vocabulary] == [
        ("<alice-cat-rand>", "<alice-cat-class>"),
        ("<bob-cat-rand>", "<bob-cat-class>"),
    ]


def test_names_that_would_be_typed_alike_are_refused(base: BaseModel, make_config: MakeConfig) -> None:
    alike = [random_concept(base, name, seed) for seed, name in enumerate(("a-b/c@1", "a/b-c@1"))]
    with pytest.raises(ConflictError, match="<a-b-c>"):
        fuse(base, alike, make_config())
    versions = [random_concept(base, name, seed) for seed, name in enumerate(("a/b@1", "a/b@2"))]
    with pytest.raises(ConflictError, match="a/b@1 and a/b@2"):
        fuse(base, versions, make_config())


def test_no_concepts_are_refused(base: BaseModel) -> None:
    with pytest.raises(BadInputError, match="no concepts"):
        fuse(base, [])


def test_concepts_of_different_make_are_fused(base: BaseModel, make_config: MakeConfig) -> None:
    mixed = [
        random_concept(base, "alice/robot@1", 0, rank=4),
        random_concept(base, "bob/cat@1", 1, rank=1, components=("unet",)),
        random_concept(base, "carol/style@1", 2, rank=3, with_embeddings=False),
        random_concept(base, "dave/dog@1", 3, rank=2, components=("text_encoder",)),
    ]
    model = fuse(base, mixed, make_config())
    assert model.words == ("<alice-robot>", "<bob-cat>", "<dave-dog>")
    ranks = {name: update.rank for name, update in model.adapter.linears["unet"].items()}
    assert set(ranks.values()) == {4 + 1 + 3}
    assert {update.rank for update in model.adapter.linears["text_encoder"].values()} == {4 + 3 + 2}
    assert all(np.isfinite(update).all() for update in updates_of(model).values())


def test_a_scale_of_zero_leaves_a_concept_out_of_that_component(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig
) -> None:
    silent = dataclasses.replace(sources[0], scales={"unet": 0.0})
    model = fuse(base, [silent], make_config())
    assert all(float(update.delta().abs().max()) < 1e-6 for update in model.adapter.linears["unet"].values())
    assert any(float(update.delta().abs().max()) > 1e-3 for update in model.adapter.linears["text_encoder"].values())


def test_scales_by_name_are_the_scales_of_the_concepts(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig
) -> None:
    scaled = fuse(base, sources, make_config(scales={"alice/robot": 0.5, "bob/cat": {"unet": 2.0}}))
    given = [
        dataclasses.replace(sources[0], scales={"text_encoder": 0.5, "unet": 0.5}),
        dataclasses.replace(sources[1], scales={"text_encoder": 1.0, "unet": 2.0}),
        sources[2],
    ]
    direct = fuse(base, given, make_config())
    assert scaled.sources == direct.sources
    assert scaled.report == direct.report
    assert scaled.report != fuse(base, sources, make_config()).report
    for layer, update in updates_of(direct).items():
        np.testing.assert_array_equal(updates_of(scaled)[layer], update)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"bob/dog": 1.0}, "a scale for bob/dog: expected one of alice/robot, bob/cat, carol/house"),
        ({"bob/cat": -1.0}, "expected numbers from 0 to 10"),
        ({"bob/cat": float("nan")}, "expected numbers from 0 to 10"),
        ({"bob/cat": {"vae": 1.0}}, "text_encoder, text_encoder_2, unet"),
    ],
)
def test_scales_that_mean_nothing_are_refused(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig, scales: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        fuse(base, sources, make_config(scales=scales))


def test_a_concept_of_another_base_is_refused(base: BaseModel, make_config: MakeConfig) -> None:
    source = random_concept(base, "alice/robot@1", 0)
    card = dataclasses.replace(source.edlora.card, base_fingerprint={"unet": "0" * 64, "text_encoder": "1" * 64})
    foreign = dataclasses.replace(source, edlora=dataclasses.replace(source.edlora, card=card))
    with pytest.raises(BaseMismatchError, match=r"alice/robot@1.*text_encoder and unet"):
        fuse(base, [foreign], make_config())
    assert fuse(base, [foreign], make_config(allow_base_mismatch=True)).words == ("<alice-robot>",)


def test_a_concept_that_is_not_finite_is_refused_by_concept_and_layer(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig
) -> None:
    broken = random_concept(base, "mallory/cat@1", 9)
    name = next(iter(broken.edlora.linears["unet"]))
    broken.edlora.linears["unet"][name].up[0, 0] = float("nan")
    with pytest.raises(FusionError, match=f"mallory/cat@1.*{name}"):
        fuse(base, [*sources, broken], make_config())


@pytest.mark.parametrize("strength", [3.5, 10.0])
def test_a_hundredfold_norm_is_refused_or_clipped(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig, strength: float
) -> None:
    loud = random_concept(base, "mallory/cat@1", 9, strength=strength)
    with pytest.raises(FusionError, match=r"mallory/cat@1.*--clip-norm"):
        fuse(base, [*sources, loud], make_config())
    clipped = fuse(base, [*sources, loud], make_config(clip_norm=0.2))
    assert {(item["concept"], item["component"]) for item in clipped.report["clipped"]} == {
        ("mallory/cat@1", "unet"),
        ("mallory/cat@1", "text_encoder"),
    }
    honest = fuse(base, sources, make_config())
    for stage, figures in clipped.report["stages"].items():
        for source in sources:
            before = honest.report["stages"][stage]["concepts"][source.name]["held_out"]
            assert figures["concepts"][source.name]["held_out"] < 1.6 * before + 0.2
        assert set(figures["without_clipped"]) == {source.name for source in sources}


def test_what_a_clipped_concept_does_to_its_neighbours_is_reported(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig
) -> None:
    loud = random_concept(base, "mallory/cat@1", 9, strength=10.0)
    lines: list[str] = []
    clipped = fuse(base, [*sources, loud], make_config(clip_norm=2.0), progress=lines.append)
    honest = fuse(base, sources, make_config())
    first = clipped.report["stages"]["text-encoder"]
    assert first["without_clipped"] == honest.report["stages"]["text-encoder"]["concepts"]
    assert "without_clipped" not in honest.report["stages"]["text-encoder"]
    worse = [
        first["concepts"][name]["fit"] - first["without_clipped"][name]["fit"] for name in first["without_clipped"]
    ]
    assert min(worse) > 0
    said = [line for line in lines if line.startswith("text-encoder: alice/robot@1 beside mallory/cat@1: fit ")]
    assert len(said) == 1
    assert any(
        line.startswith("mallory/cat@1: its unet updates, 10 times") and "scaled by 0.2" in line for line in lines
    )


def test_a_clipped_concept_may_be_the_only_one_that_tunes_a_layer(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig
) -> None:
    quiet = random_concept(base, "alice/robot@1", 0, components=("unet",))
    loud = random_concept(base, "mallory/cat@1", 9, strength=10.0)
    report = fuse(base, [quiet, loud], make_config(clip_norm=0.2)).report["stages"]
    assert report["text-encoder"]["without_clipped"]["alice/robot@1"] == {"fit": None, "held_out": None}
    assert report["spatial"]["without_clipped"]["alice/robot@1"]["fit"] is not None


def test_statistics_that_are_not_finite_name_concept_and_layer_before_anything_is_written(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig, tmp_path: Path
) -> None:
    broken = random_concept(base, "alice/cat@1", 9)
    broken.edlora.embeddings["text_encoder"][:] = 3e38
    with pytest.raises(
        FusionError, match=r"alice/cat@1: inputs of text_encoder/encoder\.layers\.0\.\S+ are not finite"
    ):
        fuse(base, [broken, *sources], make_config(), cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_extending_from_the_cache_equals_fusing_from_scratch(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    fuse(base, sources[:2], make_config(), cache=cache)
    kept = set(cache.iterdir())
    lines: list[str] = []
    extended = fuse(base, sources[1:], make_config(), cache=cache, progress=lines.append)
    scratch = fuse(base, sources[1:], make_config())
    assert files_of(extended, tmp_path / "a") == files_of(scratch, tmp_path / "b")
    recorded = [line for line in lines if line.startswith("text-encoder: recorded")]
    assert len(recorded) == 1
    assert "carol/house@1" in recorded[0]
    assert kept < set(cache.iterdir())


def test_a_broken_cache_file_is_recorded_again(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = files_of(fuse(base, sources, make_config(), cache=cache), tmp_path / "a")
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert files_of(fuse(base, sources, make_config(), cache=cache), tmp_path / "b") == first


class BinnedExecutor(SerialExecutor):
    """Solves bin after bin and records in reverse, as workers would in any order."""

    def record(
        self, stage: Stage, sources: Sequence[FusionSource | None], upstream: Adapter | None
    ) -> list[StageStatistics]:
        return list(super().record(stage, sources[::-1], upstream))[::-1]

    def solve(self, stage: Stage, problems: Sequence[SiteProblem]) -> list[SiteSolution]:
        by_name = {problem.site: problem for problem in problems}
        bins = plan_bins({name: site_cost(problem) for name, problem in by_name.items()}, 3)
        solved: list[SiteSolution] = []
        for names in reversed(bins):
            solved += super().solve(stage, [by_name[name] for name in names])
        found = {site.site: site for site in solved}
        return [found[problem.site] for problem in problems]


def test_another_executor_gives_the_same_bytes(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig, tmp_path: Path
) -> None:
    serial = files_of(fuse(base, sources, make_config()), tmp_path / "a")
    executor = BinnedExecutor(base, make_config())
    assert files_of(fuse(base, sources, make_config(), executor=executor), tmp_path / "b") == serial


@pytest.mark.parametrize("strategy", ["average", "sum", "svd-average", "ties", "dare"])
def test_strategies_by_weights_alone_are_deterministic(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig, tmp_path: Path, strategy: str
) -> None:
    first = fuse(base, sources, make_config(strategy=strategy))
    second = fuse(base, sources[::-1], make_config(strategy=strategy))
    assert files_of(first, tmp_path / "a") == files_of(second, tmp_path / "b")


def test_an_sdxl_base_is_fused(make_config: MakeConfig) -> None:
    from mos.random_base import random_base

    base = random_base("sdxl")
    sources = [random_concept(base, name, seed) for seed, name in enumerate(("alice/cat@1", "bob/dog@1"))]
    model = fuse(base, sources, make_config())
    assert set(model.adapter.linears) == {"text_encoder", "text_encoder_2", "unet"}
    assert isinstance(sources[0].ref, ConceptRef)


def test_any_update_is_measured_on_what_gradient_fusion_would_have_recorded(
    base: BaseModel, sources: list[FusionSource], make_config: MakeConfig
) -> None:
    config = make_config()
    gradient = fuse(base, sources, config)
    assert measure_fusion(base, sources, gradient.adapter.linears, config) == gradient.report["stages"]
    average = fuse(base, sources, make_config(strategy="average"))
    figures = measure_fusion(base, sources, average.adapter.linears, config)
    assert set(figures) == set(gradient.report["stages"])
    fits = [concept["fit"] for concept in figures["text-encoder"]["concepts"].values()]
    best = [concept["fit"] for concept in gradient.report["stages"]["text-encoder"]["concepts"].values()]
    assert sum(best) < sum(fits)
