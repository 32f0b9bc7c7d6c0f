"""From files of other tools to one strict artifact, counting what matched and naming what did not."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from mos.artifact import ArtifactError, EDLoRA
from mos.base_model import BaseModel
from mos.card import ArtifactCard, parse_card
from mos.edlora.lora import LowRank
from mos.errors import BadInputError
from mos.facts import TUNABLE, BaseFacts, tuned_linears
from mos.formats.names import KeyTable, LayerPart
from mos.formats.source import ForeignFile, ImportFormatError, adapter_scale, open_foreign
from mos.formats.words import FoundWords, find_words, own_words, words_of_base


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a file of another tool does not say.

    Args:
        name: of the concept; its own words are made from it where the file has none.
        class_word: the class it belongs to; None takes it from a file mos wrote.
        kind: human, object, scene, pet or style.
        trigger: text a LoRA without embeddings was trained with; the class word if None.
        title: one line for people.
        scale: strength to absorb into the updates.
    """

    name: str
    class_word: str | None = None
    kind: str | None = None
    trigger: str | None = None
    title: str = ""
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What became of a file.

    Args:
        spelling: whose key names it uses.
        matched: component -> layers whose update was found.
        filled: component -> layers of the same groups that the file leaves alone (their update is zero).
        unmatched: keys that name nothing the base has, sorted.
        rank: of the artifact; smaller updates are padded with zeros.
        words: the concept's own words.
        words_from: where their embeddings came from.
    """

    spelling: str
    matched: Mapping[str, int]
    filled: Mapping[str, int]
    unmatched: tuple[str, ...]
    rank: int
    words: tuple[str, ...]
    words_from: str

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        counts = ", ".join(f"{count} of {count + self.filled[name]} {name}" for name, count in self.matched.items())
        lines = [f"{self.spelling}: layers {counts or 'none'}, rank {self.rank}"]
        lines.append(f"words {' '.join(self.words)} from {self.words_from}")
        if self.unmatched:
            shown = ", ".join(self.unmatched[:8]) + (", ..." if len(self.unmatched) > 8 else "")
            lines.append(f"{len(self.unmatched)} keys not used: {shown}")
        return lines


@dataclass(kw_only=True)
class _Gathered:
    """What was found so far: parts by layer, words, keys left over."""

    parts: dict[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)
    scales: dict[tuple[str, str], float] = field(default_factory=dict)
    keys: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    spellings: dict[str, int] = field(default_factory=dict)
    words: FoundWords | None = None
    unmatched: list[str] = field(default_factory=list)


def import_concept(paths: Sequence[str | Path], base: BaseModel, options: ImportOptions) -> tuple[EDLoRA, ImportReport]:
    """Read a LoRA, an embedding, or a pair of them, and make one concept of the base.

    Args:
        paths: files or folders; together they are one concept (a pivotal-tuning pair is two).
        base: the base the concept is for.
        options: what the files do not say.

    Returns:
        The concept, every tuned group complete, and what matched.

    Raises:
        ImportFormatError: If nothing matches, a shape differs, or a file uses what a low-rank update
            cannot hold.
    """
    files = [open_foreign(path) for path in paths]
    table = KeyTable(base.facts)
    gathered = _Gathered()
    for file in files:
        _gather(file, table, base.facts, gathered)
    linears = {
        layer: _update(gathered, layer, options.scale) for layer, parts in gathered.parts.items() if _is_whole(parts)
    }
    for layer, parts in gathered.parts.items():
        if not _is_whole(parts):
            gathered.unmatched += gathered.keys[layer]
    names = ", ".join(str(file.path) for file in files)
    if not linears and gathered.words is None:
        shown = ", ".join(sorted(gathered.unmatched)[:3])
        raise ImportFormatError(
            f"{names}: 0 of {len(gathered.unmatched)} keys match {base.facts.name} (such as {shown}); "
            "is it for another base or no LoRA?"
        )
    _check_shapes(names, linears, base.facts)
    return _assemble(files, linears, gathered, base, options)


def _gather(file: ForeignFile, table: KeyTable, facts: BaseFacts, gathered: _Gathered) -> None:
    rest = []
    for key in file.tensors:
        found = table.find(key)
        if found is None:
            rest.append(key)
        else:
            _add(file, key, found, gathered)
    words, taken = find_words(file, rest, facts)
    if words is not None:
        if gathered.words is not None:
            raise ImportFormatError(f"{file.path}: holds word embeddings, and so does another of the files; drop one")
        gathered.words = words
    gathered.unmatched += [key for key in rest if key not in taken]


def _add(file: ForeignFile, key: str, found: LayerPart, gathered: _Gathered) -> None:
    if found.part == "dora":
        raise ImportFormatError(f"{file.path}: {key}: uses DoRA, whose magnitudes a low-rank update cannot hold")
    layer = (found.component, found.layer)
    parts = gathered.parts.setdefault(layer, {})
    if found.part in parts:
        raise ImportFormatError(f"{file.path}: {key}: a second {found.part} for {found.component} {found.layer}")
    parts[found.part] = tensor = _part(file, key, found)
    gathered.keys.setdefault(layer, []).append(key)
    if found.part == "down":
        spelling = "mixofshow" if _is_reference(file) else found.spelling
        gathered.spellings[spelling] = gathered.spellings.get(spelling, 0) + 1
        gathered.scales[layer] = adapter_scale(file.metadata, found.component, tensor.shape[0])


def _part(file: ForeignFile, key: str, found: LayerPart) -> Tensor:
    """Return an alpha as one number, and a matrix with the unit sides of a 1x1 convolution folded in."""
    tensor = file.tensors[key].float()
    is_right = tensor.numel() == 1 if found.part == "alpha" else tensor.ndim in (2, 4) and 0 not in tensor.shape
    if not is_right:
        raise ImportFormatError(f"{file.path}: {key} is {list(tensor.shape)}, which is no {found.part} of a LoRA")
    return tensor if found.part == "alpha" else tensor.flatten(1)


def _is_reference(file: ForeignFile) -> bool:
    return any(key.removeprefix("params.").startswith("new_concept_embedding.") for key in file.tensors)


def _is_whole(parts: Mapping[str, Tensor]) -> bool:
    return "up" in parts and "down" in parts


def _update(gathered: _Gathered, layer: tuple[str, str], strength: float) -> LowRank:
    """Put an update together; alpha / rank and any strength go into ``up``, and factors of 1 change no bit."""
    parts = gathered.parts[layer]
    up, down = parts["up"], parts["down"]
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
        raise ImportFormatError(
            f"{layer[0]} {layer[1]}: up {list(up.shape)} and down {list(down.shape)} do not multiply"
        )
    scale = gathered.scales[layer] * strength
    if "alpha" in parts:
        scale *= float(parts["alpha"].reshape(-1)[0]) / down.shape[0]
    return LowRank(up=up if scale == 1.0 else up * scale, down=down)


def _check_shapes(names: str, linears: Mapping[tuple[str, str], LowRank], facts: BaseFacts) -> None:
    for (component, layer), update in linears.items():
        expected = tuple(facts.linear_shapes[component][layer])
        if update.shape != expected:
            raise ImportFormatError(
                f"{names}: the update of {component} {layer} is {list(update.shape)}, {facts.name} has "
                f"{list(expected)}; it was made for another base"
            )


def _assemble(
    files: Sequence[ForeignFile],
    linears: Mapping[tuple[str, str], LowRank],
    gathered: _Gathered,
    base: BaseModel,
    options: ImportOptions,
) -> tuple[EDLoRA, ImportReport]:
    own_card = _own_card(files, base.facts)
    options = _completed(options, own_card)
    class_word = options.class_word
    if class_word is None:
        raise BadInputError(f"{files[0].path}: says of no class what it shows; give one, such as --class-word cat")
    words = gathered.words or words_of_base(base, options.trigger or class_word)
    if own_card:
        words = replace(words, names=own_card.words)
    tuned = _tuned_groups(linears, base.facts)
    rank = max((update.rank for update in linears.values()), default=0)
    complete = _completed_linears(linears, tuned, rank, base.facts)
    spelling = max(gathered.spellings, key=lambda name: gathered.spellings[name], default="embedding")
    card = ArtifactCard(
        words=own_words(words, options.name),
        class_word=class_word,
        kind=options.kind or "object",
        base_name=own_card.base_name if own_card else base.facts.name,
        family=base.facts.family,
        base_fingerprint=dict(base.facts.fingerprint),
        rank=rank,
        tuned=tuned,
        seed=own_card.seed if own_card else 0,
        recipe=own_card.recipe if own_card else _recipe(files, spelling, options),
        title=options.title,
    )
    edlora = EDLoRA(card=card, linears=complete, embeddings=words.embeddings)
    return edlora, _report(linears, complete, gathered, card, words, spelling)


def _report(
    linears: Mapping[tuple[str, str], LowRank],
    complete: Mapping[str, Mapping[str, LowRank]],
    gathered: _Gathered,
    card: ArtifactCard,
    words: FoundWords,
    spelling: str,
) -> ImportReport:
    matched = {component: sum(place[0] == component for place in linears) for component in complete}
    return ImportReport(
        spelling=spelling,
        matched=matched,
        filled={component: len(updates) - matched[component] for component, updates in complete.items()},
        unmatched=tuple(sorted(gathered.unmatched)),
        rank=card.rank,
        words=card.words,
        words_from=words.origin,
    )


def _tuned_groups(linears: Mapping[tuple[str, str], LowRank], facts: BaseFacts) -> tuple[str, ...]:
    def touched(group: str) -> bool:
        return any(
            (component, layer) in linears
            for component, layers in tuned_linears(facts, [group]).items()
            for layer in layers
        )

    return tuple(group for group in TUNABLE if touched(group))


def _completed_linears(
    linears: Mapping[tuple[str, str], LowRank], tuned: Sequence[str], rank: int, facts: BaseFacts
) -> dict[str, dict[str, LowRank]]:
    """Give every layer of the tuned groups an update of one rank; what is missing is zero."""
    complete: dict[str, dict[str, LowRank]] = {}
    for component, layers in tuned_linears(facts, tuned).items():
        for layer in layers:
            out, into = facts.linear_shapes[component][layer]
            empty = LowRank(up=torch.zeros(out, 0), down=torch.zeros(0, into))
            complete.setdefault(component, {})[layer] = _padded(linears.get((component, layer), empty), rank)
    return complete


def _padded(update: LowRank, rank: int) -> LowRank:
    missing = rank - update.rank
    if missing == 0:
        return LowRank(up=update.up.contiguous(), down=update.down.contiguous())
    out, into = update.shape
    return LowRank(
        up=torch.cat([update.up, torch.zeros(out, missing)], dim=1),
        down=torch.cat([update.down, torch.zeros(missing, into)]),
    )


def _recipe(files: Sequence[ForeignFile], spelling: str, options: ImportOptions) -> dict[str, str]:
    recipe = {"imported_spelling": spelling}
    for index, file in enumerate(files):
        with file.path.open("rb") as data:
            recipe[f"imported_sha256_{index}"] = hashlib.file_digest(data, "sha256").hexdigest()
    if options.trigger:
        recipe["trigger"] = options.trigger
    if options.scale != 1.0:
        recipe["imported_scale"] = str(options.scale)
    return recipe


def _own_card(files: Sequence[ForeignFile], facts: BaseFacts) -> ArtifactCard | None:
    """Read the card back from a file mos exported for this very base; None for all other files."""
    for file in files:
        metadata = file.metadata
        if "mos.title" not in metadata:
            continue
        try:
            card = parse_card({**metadata, "modelspec.title": metadata["mos.title"]}, file.path)
        except ArtifactError as error:
            raise ImportFormatError(f"{error}; its mos metadata was changed") from error
        return card if dict(card.base_fingerprint) == dict(facts.fingerprint) else None
    return None


def _completed(options: ImportOptions, own_card: ArtifactCard | None) -> ImportOptions:
    """Fill in what was not said from the file's own card."""
    return replace(
        options,
        class_word=options.class_word or (own_card.class_word if own_card else None),
        kind=options.kind or (own_card.kind if own_card else None),
        title=options.title or (own_card.title if own_card else options.name),
    )
