"""What is recorded of a concept in each of the three stages of gradient fusion.

1. Text encoder: inputs of its layers, tuned for the concept, over all tokens (BOS to EOS) of its prompts, once a
   cross-attention layer.
2. Cross-attention keys and values: the fused text encoder's encodings of the concept's own tokens and EOS, each
   layer its own.
3. Everything else in the U-Net: inputs while the fused text encoder, keys and values and the concept's own LoRA draw
   it, without guidance, every step recorded.

The same for the generic prompts, with the base's own weights where a concept's would stand. (Mix-of-Show,
arXiv:2305.18292, section 3.2 and appendix; the generic prompts are this project's.)
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice

import torch

from mos.base_model import BaseModel
from mos.edlora.adapter import Adapter, applied
from mos.edlora.tokens import PromptEncoder
from mos.fusion.capture import fixed_threads, recording
from mos.fusion.config import FusionConfig, StageName
from mos.fusion.source import FusionSource
from mos.fusion.statistics import GramAccumulator, SiteStatistics, StageStatistics
from mos.layers import cross_attention_names, input_sites

Sites = dict[str, SiteStatistics]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One barrier of the fusion: which layers it solves.

    Attributes:
        name: Which of the three.
        sites: Component -> site -> the linears that share its input, each tuned by at least one concept.
    """

    name: StageName
    sites: Mapping[str, Mapping[str, tuple[str, ...]]]

    def linears(self) -> dict[str, tuple[str, str]]:
        """`component/linear` -> (component, linear), in order."""
        return {
            f"{component}/{name}": (component, name)
            for component, sites in self.sites.items()
            for names in sites.values()
            for name in names
        }


def plan_stages(base: BaseModel, sources: Sequence[FusionSource]) -> list[Stage]:
    """Sort every layer that some concept tunes into its stage; stages without layers are left out."""
    tuned = {component: _tuned(base, component, sources) for component in (*base.text_encoders, "unet")}
    text = {name: _sites(base, name, tuned[name]) for name in base.text_encoders if tuned[name]}
    unet = _sites(base, "unet", tuned["unet"])
    keys_and_values = {f"{name}.kv" for name in cross_attention_names(base.unet)}
    cross = {site: names for site, names in unet.items() if site in keys_and_values}
    spatial = {site: names for site, names in unet.items() if site not in keys_and_values}
    stages = [
        Stage(name=StageName.TEXT_ENCODER, sites=text),
        Stage(name=StageName.CROSS_ATTENTION, sites={"unet": cross} if cross else {}),
        Stage(name=StageName.SPATIAL, sites={"unet": spatial} if spatial else {}),
    ]
    return [stage for stage in stages if stage.sites]


def record_stage(
    stage: Stage, base: BaseModel, source: FusionSource | None, upstream: Adapter | None, config: FusionConfig
) -> StageStatistics:
    """Record one concept, or the generic prompts, in one stage.

    Args:
        stage: Which layers.
        base: Whose weights are exchanged for the duration and put back bit for bit.
        source: The concept; None records the generic prompts.
        upstream: What the stages before found, with the vocabulary of all concepts; None in the first stage.
        config: Prompts, seeds and steps.

    Returns:
        Statistics of the fitted prompts, and of the held-out ones if the config asks to measure.
    """
    record = _RECORDERS[stage.name]
    fitted, held_out = stage_prompts(stage.name, config, is_generic=source is None)
    word = "" if source is None else source.prompt_word
    started = time.process_time()
    with fixed_threads(config.threads), torch.no_grad(), applied(base, _weights(stage.name, source, upstream)):
        run = _Run(stage=stage, base=base, upstream=upstream, source=source, config=config)
        prompts, checks = (tuple(text.replace("{}", word) for text in texts) for texts in (fitted, held_out))
        sites, others = record(
            run,
            (_Part(prompts=prompts, seeds=config.latent_seeds), _Part(prompts=checks, seeds=config.held_out_seeds)),
        )
    return StageStatistics(
        concept="" if source is None else source.name,
        sites=sites,
        held_out=others,
        seconds=time.process_time() - started,
    )


def stage_prompts(
    stage: StageName, config: FusionConfig, *, is_generic: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which prompts a stage fits and which it only checks; drawing is dear, so the last stage draws few.

    Of a concept it draws one picture a latent seed, each by another prompt: three contexts keep more of an identity
    than three pictures by one prompt, at the same cost (docs/fusion.md).

    Returns:
        (fitted, held out), `{}` standing for a concept's word.
    """
    if is_generic:
        fitted = config.generic_prompts if config.rule(stage).generic_weight > 0 else ()
        held_out = config.drift_prompts if config.measure else ()
    else:
        fitted, held_out = config.prompts, config.held_out_prompts if config.measure else ()
    if stage is not StageName.SPATIAL:
        return fitted, held_out
    if is_generic:
        return fitted[:3], held_out[:2]
    return fitted[: len(config.latent_seeds)], held_out[:1]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What is recorded together: prompts, and in the last stage the seeds of its pictures."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def pictures(self) -> list[tuple[str, int]]:
        """Prompt and seed of each picture: as many as the longer of both, the shorter going round."""
        count = max(len(self.prompts), len(self.seeds)) if self.prompts else 0
        pairs = zip(cycle(self.prompts), cycle(self.seeds), strict=False)
        return list(islice(pairs, count))


@dataclass(frozen=True, kw_only=True)
class _Run:
    stage: Stage
    base: BaseModel
    upstream: Adapter | None
    source: FusionSource | None
    config: FusionConfig

    @property
    def may_truncate(self) -> bool:
        """Whether over-long prompts are cut: a generic one then still says something, a concept's may lose its word."""
        return self.source is None

    def encoder(self) -> PromptEncoder:
        """In the first stage, which has no upstream, a concept knows its own words alone."""
        if self.upstream is not None:
            return PromptEncoder(self.base, self.upstream.vocabulary)
        own = self.source.concept_words() if self.source is not None else None
        return PromptEncoder(self.base, () if own is None else (own,))


def _weights(stage: StageName, source: FusionSource | None, upstream: Adapter | None) -> Adapter | None:
    """What the base runs with while recording: upstream results, and the concept's own weights where its turn is."""
    linears = {component: dict(updates) for component, updates in (upstream.linears if upstream else {}).items()}
    if source is not None and stage is StageName.TEXT_ENCODER:
        linears |= {component: source.updates(component) for component in source.edlora.linears if component != "unet"}
    if source is not None and stage is StageName.SPATIAL:
        fused = linears.get("unet", {})
        own = source.updates("unet")
        linears["unet"] = fused | {name: own[name] for name in own if name not in fused and not _is_cross(name)}
    return Adapter(linears=linears, vocabulary=upstream.vocabulary if upstream is not None else ())


def _is_cross(name: str) -> bool:
    return name.endswith((".attn2.to_k", ".attn2.to_v"))


def _record_text(run: _Run, parts: Sequence[_Part]) -> list[Sites]:
    return [_text_sites(run, part.prompts) if part.prompts else {} for part in parts]


def _text_sites(run: _Run, prompts: Sequence[str]) -> Sites:
    encoder = run.encoder()
    result: Sites = {}
    for component, sites in run.stage.sites.items():
        accumulators = {site: GramAccumulator(precise=True) for site in sites}
        for prompt in prompts:
            ids = encoder.token_ids(prompt, component, truncate=run.may_truncate)
            tokens = ids.index(run.base.facts.encoder(component).eos_id) + 1
            with recording(run.base.text_encoders[component], sites, accumulators, tokens=tokens):
                encoder.encode([prompt], truncate=run.may_truncate)
        result |= {f"{component}/{site}": found.statistics() for site, found in accumulators.items()}
    return result


def _record_cross(run: _Run, parts: Sequence[_Part]) -> list[Sites]:
    return [_cross_sites(run, part.prompts) if part.prompts else {} for part in parts]


def _cross_sites(run: _Run, prompts: Sequence[str]) -> Sites:
    encoder = run.encoder()
    layer_of = {f"{name}.kv": index for index, name in enumerate(cross_attention_names(run.base.unet))}
    accumulators = {site: GramAccumulator(precise=True) for site in run.stage.sites["unet"]}
    for prompt in prompts:
        context = encoder.encode([prompt], truncate=run.may_truncate).context[0]
        rows = list(range(context.shape[1]))
        if run.source is not None:
            rows = _concept_positions(encoder, prompt, run.source)
        for site, accumulator in accumulators.items():
            accumulator.add(context[layer_of[site], rows])
    return {f"unet/{site}": accumulator.statistics() for site, accumulator in accumulators.items()}


def _concept_positions(encoder: PromptEncoder, prompt: str, source: FusionSource) -> list[int]:
    end = encoder.eos_position(prompt)
    if not source.edlora.embeddings:
        return list(range(end + 1))
    return [*encoder.token_positions(prompt, source.ref.word), end]


def _record_spatial(run: _Run, parts: Sequence[_Part]) -> list[Sites]:
    """Draw the pictures of all parts as one batch, which costs a fifth less than apart."""
    from mos.sampling import SamplingConfig, denoise

    base, sites = run.base, run.stage.sites["unet"]
    prompts = [prompt for part in parts for prompt, _ in part.pictures]
    latents = [_latents(base, seed) for part in parts for _, seed in part.pictures]
    if not prompts:
        return [{} for _ in parts]
    options = SamplingConfig(num_inference_steps=run.config.sampling_steps, guidance_scale=1.0)
    encoding = run.encoder().encode(prompts, truncate=run.may_truncate)
    found: list[dict[str, GramAccumulator]] = []
    with ExitStack() as stack:
        start = 0
        for part in parts:
            found.append({site: GramAccumulator(precise=False) for site in sites if part.pictures})
            batch = slice(start, start + len(part.pictures))
            if part.pictures:
                stack.enter_context(recording(base.unet, sites, found[-1], batch=batch))
            start = batch.stop
        denoise(base, encoding, None, torch.stack(latents).to(base.device), options)
    return [{f"unet/{site}": gram.statistics() for site, gram in part.items()} for part in found]


def _latents(base: BaseModel, seed: int) -> torch.Tensor:
    """[channels, height, width] unit noise."""
    shape = (base.facts.latent_channels, base.facts.sample_size, base.facts.sample_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _tuned(base: BaseModel, component: str, sources: Sequence[FusionSource]) -> list[str]:
    tuned = {name for source in sources for name in source.edlora.linears.get(component, {})}
    return [name for name in base.facts.linear_shapes[component] if name in tuned]


def _sites(base: BaseModel, component: str, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return input_sites(base.component(component), names)


_RECORDERS: dict[StageName, Callable[[_Run, Sequence[_Part]], list[Sites]]] = {
    StageName.TEXT_ENCODER: _record_text,
    StageName.CROSS_ATTENTION: _record_cross,
    StageName.SPATIAL: _record_spatial,
}
