"""From what a person types to an evaluation: open the models, learn what is true of each concept, run it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mos.errors import BadInputError, NotFoundError

if TYPE_CHECKING:
    from PIL import Image

    from cluster.evaluation import EvaluationJob, EvaluationOutcome, OnBlock
    from mos.base_model import BaseModel
    from mos.edlora.adapter import Adapter, ConceptWords
    from mos.evaluation.batch import EvaluatedModel
    from mos.evaluation.prompts import PromptSuite
    from mos.evaluation.scoring import ConceptTruth

Value = TypeVar("Value")

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_IDENTITY = re.compile(r"([a-z]+):([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What was asked for on the command line.

    Attributes:
        models: Names as `mos sample` takes them; `base` is added as the floor.
        suite: Name of a suite or path of one's own.
        registry_url: Where published models come from and scores go.
        num_seeds: Seeds a prompt.
        num_inference_steps: Denoising steps.
        guidance_scale: Classifier-free guidance.
        references: Concept -> folder with its pictures.
        identities: Concept -> `class:seed` of the small world.
        base: Path or hub id; None is the small world.
        scorer: Path of a transformers CLIPModel; None is the small world's.
        allow_unlisted: Also evaluate what the catalogue does not list.
    """

    models: tuple[str, ...]
    suite: str
    registry_url: str
    num_seeds: int
    num_inference_steps: int
    guidance_scale: float
    references: Mapping[str, Path]
    identities: Mapping[str, str]
    base: str | None = None
    scorer: str | None = None
    allow_unlisted: bool = False


def prepare_evaluation(request: EvaluationRequest) -> "EvaluationJob":
    """Open everything once, so that a mistake shows before any worker starts.

    Raises:
        BadInputError: If no model is named, or a reference or identity belongs to no model.
        NotFoundError: If a model, folder, suite or scorer does not exist.
    """
    from cluster.evaluation import EvaluationJob, open_scorer
    from jobs.opening import open_base
    from mos.evaluation.batch import BatchConfig, scorer_digest
    from mos.evaluation.prompts import load_suite

    if not request.models:
        raise BadInputError("no model to evaluate: name ED-LoRA files, fused folders or owner/name of the registry")
    suite = load_suite(request.suite)
    use_probe = bool(request.identities)
    scorer = open_scorer(request.scorer, use_probe=False, text_prefix=suite.text_prefix)
    base = open_base(request.base)
    adapters = _open_models(request, base)
    words = {concept.ref: concept for adapter in adapters.values() for concept in adapter.vocabulary}
    truths = _truths(request, words)
    return EvaluationJob(
        config=BatchConfig(
            suite=suite,
            num_seeds=request.num_seeds,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            base_digest=_base_digest(base),
            scorer_digest=scorer_digest(scorer) + ("+probe" if use_probe else ""),
        ),
        models=tuple(_columns(adapters, truths, suite)),
        truths=truths,
        adapters=adapters,
        registry_url=request.registry_url,
        base=request.base,
        scorer=request.scorer,
        use_probe=use_probe,
    )


def run_here(
    job: "EvaluationJob", *, ray_address: str | None, on_block: "OnBlock | None", use_ray: bool = True
) -> "EvaluationOutcome":
    """Run a job on the Ray at an address, or on a private one, or in this process alone."""
    from cluster.evaluation import missing_blocks, run_evaluation, run_serially
    from cluster.session import connected

    if not use_ray or not missing_blocks(job):  # with nothing to draw the settings are noted all the same
        return run_serially(job, on_block=on_block)
    with connected(ray_address):
        return run_evaluation(job, on_block=on_block)


def describe_evaluation(job: "EvaluationJob") -> dict[str, Any]:
    """What `--dry-run` prints: resources, estimated minutes, bytes and digests."""
    from cluster.evaluation import missing_blocks
    from cluster.placement import EVALUATOR
    from jobs.estimates import estimate_pictures
    from jobs.opening import open_base

    missing = missing_blocks(job)
    pictures = sum(len(block.shots) for block in missing)
    references = [picture for truth in job.truths.values() for picture in truth.references]
    return {
        "evaluation": job.config.digest,
        "models": {model.name: model.digest for model in job.models},
        "blocks": len(job.blocks()),
        "blocks_missing": len(missing),
        "pictures": pictures,
        "reference_bytes": sum(len(picture.tobytes()) for picture in references),
        "resources": f"2 workers that draw and one that scores, {EVALUATOR} or a little more each",
        "estimate": estimate_pictures(pictures, job.config.num_inference_steps, open_base(job.base).facts),
    }


def _open_models(request: EvaluationRequest, base: "BaseModel") -> "dict[str, Adapter]":
    from jobs.opening import open_model

    adapters = {}
    for name in request.models:
        opened = open_model(name, base.facts, request.registry_url, allow_unlisted=request.allow_unlisted)
        if opened.adapter is not None:
            adapters[_shown(name, opened.adapter)] = opened.adapter
    if not adapters:
        raise BadInputError("only the base is named: name a model beside it, whose concepts it is asked for")
    return adapters


def _shown(name: str, adapter: "Adapter") -> str:
    """A model's name in tables: its concept if it has one, else the last part of its path."""
    if len(adapter.vocabulary) == 1:
        return adapter.vocabulary[0].ref
    return Path(name.partition("=")[2] or name).name


def _columns(
    adapters: "Mapping[str, Adapter]", truths: "Mapping[str, ConceptTruth]", suite: "PromptSuite"
) -> "list[EvaluatedModel]":
    """The models, then ceilings and floors: single concepts form one column, each fused model its own."""
    from mos.evaluation.batch import EvaluatedModel, adapter_digest, marks, untrained_base

    columns = []
    for name, adapter in adapters.items():
        concepts = tuple(concept.ref for concept in adapter.vocabulary)
        method = "single" if len(concepts) == 1 else name
        columns.append(
            EvaluatedModel(name=name, method=method, concepts=concepts, digest=adapter_digest(adapter), source=name)
        )
    columns.append(untrained_base(list(truths)))
    known = [ref for ref, truth in truths.items() if truth.identity is not None]
    if known and any(prompt.alone and prompt.backdrop for prompt in suite.prompts):
        columns += marks(known)
    return columns


def _truths(request: EvaluationRequest, words: "Mapping[str, ConceptWords]") -> "dict[str, ConceptTruth]":
    folders, identities = _by_ref(request.references, words), _by_ref(request.identities, words)
    references = {ref: read_pictures(folder) for ref, folder in folders.items()}
    return {
        ref: _truth(concept, references.get(ref, []), identities.get(ref), references) for ref, concept in words.items()
    }


def _truth(
    concept: "ConceptWords",
    references: "Sequence[Image.Image]",
    identity: str | None,
    all_references: "Mapping[str, Sequence[Image.Image]]",
) -> "ConceptTruth":
    """What is known of one concept; without an identity the other concepts are its distractors."""
    from mos.evaluation.scoring import ConceptTruth

    if identity is None:
        others = [pictures for ref, pictures in all_references.items() if ref != concept.ref]
        return ConceptTruth(
            ref=concept.ref,
            word=concept.word,
            class_word=concept.class_word,
            references=references,
            distractors=others,
        )
    return _small_world_truth(concept, references, identity)


def _small_world_truth(concept: "ConceptWords", references: "Sequence[Image.Image]", identity: str) -> "ConceptTruth":
    from mos.concept import ConceptRef
    from mos.evaluation.claim import ClaimConfig, ClaimSubject, claim_truths
    from mos.smallworld.concepts import concept_identity, concept_pictures

    match = _IDENTITY.fullmatch(identity)
    if match is None:
        raise BadInputError(f"identity {identity!r} of {concept.ref}: expected class:seed, such as robot:7")
    individual = concept_identity(int(match.group(2)), match.group(1))
    pictures = references or [picture for picture, _, _ in concept_pictures(individual, int(match.group(2)))]
    subject = ClaimSubject(ref=ConceptRef.parse(concept.ref), identity=individual, references=pictures)
    return claim_truths([subject], ClaimConfig())[0]


def _by_ref(values: "Mapping[str, Value]", words: "Mapping[str, ConceptWords]") -> "dict[str, Value]":
    """Values given for owner/name or owner/name@version, by the reference the models carry."""
    found: dict[str, Value] = {}
    for given, value in values.items():
        refs = [ref for ref in words if given in (ref, ref.partition("@")[0])]
        if not refs:
            raise BadInputError(f"{given}: no model here draws it; its concepts are {', '.join(words)}")
        found.update(dict.fromkeys(refs, value))
    return found


def read_pictures(folder: Path) -> "list[Image.Image]":
    """The pictures of a folder by name, as RGB.

    Raises:
        NotFoundError: If there is no such folder.
        BadInputError: If it has no picture, or one that cannot be read.
    """
    from PIL import Image, ImageOps

    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder of reference pictures")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise BadInputError(f"{folder}: no picture ({', '.join(PICTURE_SUFFIXES)}) in it")
    pictures = []
    for path in paths:
        try:
            with Image.open(path) as image:
                pictures.append(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, ValueError) as error:
            raise BadInputError(f"{path}: not a readable picture: {error}") from error
    return pictures


def _base_digest(base: "BaseModel") -> str:
    return ",".join(f"{name}:{value}" for name, value in sorted(base.facts.fingerprint.items()))
