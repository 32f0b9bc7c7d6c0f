"""From prompts with concept words to layer-wise encodings.

Words are bound on token ids in one pass: a prompt is cut at its words once, the text between goes through
the tokenizer, and every concept word becomes ids past the vocabulary. No replaced text is ever read again,
so no word can rewrite another.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mos.base_model import BaseModel, EncoderFacts
from mos.concept import WORD_PATTERN
from mos.edlora.adapter import ConceptWords
from mos.errors import BadInputError

_WORD = re.compile(WORD_PATTERN.pattern, re.IGNORECASE)
_SPECIAL = re.compile(r"<\|[a-z]+\|>", re.IGNORECASE)
_ROWS_A_PASS = 64


class PromptError(BadInputError):
    """Raised when a prompt uses an unknown word, is too long, or holds a tokenizer's control token."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptEncoding:
    """Encoded prompts.

    Args:
        hidden: encoder -> [batch, layers, max_length, dim]; slice i is for cross-attention layer i. Where
            no concept word occurs all layers are one row seen through an expanded view.
        token_ids: encoder -> [batch, max_length], concept words as ids past the vocabulary.
        pooled: [batch, dim] of the last encoder's projection at EOS (SDXL), else None.
    """

    hidden: Mapping[str, Tensor]
    token_ids: Mapping[str, Tensor]
    pooled: Tensor | None

    @property
    def context(self) -> Tensor:
        """What the U-Net attends to: the encoders side by side, [batch, layers, max_length, sum of dims]."""
        parts = list(self.hidden.values())
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class PromptEncoder:
    """Encodes prompts with a base and a vocabulary of concept words.

    It reads the base's weights when it encodes, so call it inside ``applied``.

    Raises:
        BadInputError: If two concepts of the vocabulary are typed as the same word.
    """

    def __init__(self, base: BaseModel, vocabulary: Sequence[ConceptWords] = ()) -> None:
        self.base = base
        self.concepts = {concept.word: concept for concept in vocabulary}
        if len(self.concepts) != len(vocabulary):
            raise BadInputError(
                f"two concepts share a word among {', '.join(sorted(concept.word for concept in vocabulary))}; "
                "rename one"
            )
        self._first_row: dict[str, int] = {}
        row = 0
        for concept in vocabulary:
            self._first_row[concept.word] = row
            row += len(concept.words)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], *, truncate: bool = False) -> PromptEncoding:
        """Encode prompts; equal prompts, and layers that cannot differ, are computed once.

        Args:
            prompts: texts, each concept written as its one word.
            truncate: cut over-long prompts instead of refusing them.

        Raises:
            PromptError: For an unknown word or an over-long prompt.
        """
        hidden, ids, pooled = {}, {}, None
        for facts in self.base.facts.encoders:
            rows = [self.token_ids(prompt, facts.name, truncate=truncate) for prompt in prompts]
            hidden[facts.name], pooled = self._encode_rows(facts, rows)
            ids[facts.name] = torch.tensor(rows, device=self.base.device)
        is_xl = self.base.facts.family == "sdxl"
        return PromptEncoding(hidden=hidden, token_ids=ids, pooled=pooled if is_xl else None)

    def token_ids(self, prompt: str, encoder: str = "text_encoder", *, truncate: bool = False) -> list[int]:
        """Return a prompt's ids, BOS to padding, concept words as ids past the vocabulary.

        Raises:
            PromptError: As :meth:`encode`.
        """
        facts = self.base.facts.encoder(encoder)
        body: list[int] = []
        for piece, concept in self._pieces(prompt):
            if concept is None:
                body += self.base.tokenizers[encoder](piece, add_special_tokens=False, verbose=False).input_ids
            else:
                first = facts.vocab_size + self._first_row[concept.word]
                body += range(first, first + len(concept.words))
        room = facts.max_length - 2
        if len(body) > room and not truncate:
            raise PromptError(f"prompt of {len(body)} tokens, the base reads {room}: {prompt[:60]!r}...; shorten it")
        body = [facts.bos_id, *body[:room], facts.eos_id]
        return body + [facts.pad_id] * (facts.max_length - len(body))

    def token_positions(
        self, prompt: str, word: str, index: int | None = None, *, encoder: str = "text_encoder"
    ) -> tuple[int, ...]:
        """Say where a concept stands in an encoded prompt, BOS being position 0.

        Args:
            prompt: the text.
            word: the concept's typed word.
            index: only its own word of that index (0 is V_rand, 1 is V_class); None means all of them.
            encoder: whose tokenizer counts.

        Raises:
            PromptError: If the word is not in the vocabulary.
        """
        concept = self._concept(word)
        first = self.base.facts.encoder(encoder).vocab_size + self._first_row[concept.word]
        wanted = range(first, first + len(concept.words)) if index is None else (first + index,)
        ids = self.token_ids(prompt, encoder)
        return tuple(position for position, token in enumerate(ids) if token in wanted)

    def eos_position(self, prompt: str, *, encoder: str = "text_encoder") -> int:
        """Say where a prompt ends: the position of its EOS token."""
        return self.token_ids(prompt, encoder).index(self.base.facts.encoder(encoder).eos_id)

    def plain(self, prompt: str) -> str:
        """Return the prompt with every concept word replaced by its class word."""
        return "".join(piece if concept is None else concept.class_word for piece, concept in self._pieces(prompt))

    def word_rows(self, encoder: str) -> Tensor:
        """Return the embeddings behind the ids past the vocabulary, [num_words, layers, dim]."""
        facts = self.base.facts.encoder(encoder)
        rows = [concept.embeddings[encoder] for concept in self.concepts.values()]
        layers = self.base.facts.num_cross_attention_layers
        return torch.cat(rows) if rows else torch.zeros(0, layers, facts.hidden_dim)

    def _concept(self, word: str) -> ConceptWords:
        concept = self.concepts.get(word.lower())
        if concept is None:
            known = ", ".join(sorted(self.concepts)) or "none"
            raise PromptError(f"unknown word {word}: the words known here are {known}")
        return concept

    def _pieces(self, prompt: str) -> Iterator[tuple[str, ConceptWords | None]]:
        if _SPECIAL.search(prompt):
            raise PromptError(f"prompt holds a tokenizer's control token: {prompt[:60]!r}; take it out")
        end = 0
        for match in _WORD.finditer(prompt):
            if match.start() > end:
                yield prompt[end : match.start()], None
            yield match.group(), self._concept(match.group())
            end = match.end()
        if end < len(prompt):
            yield prompt[end:], None

    def _encode_rows(self, facts: EncoderFacts, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """Encode token rows: [batch, layers, max_length, dim] and the pooled layer-0 output [batch, dim]."""
        layers = self.base.facts.num_cross_attention_layers
        embeddings = self.word_rows(facts.name).to(self.base.device)
        unique = list(dict.fromkeys(tuple(row) for row in rows))
        single = bool(embeddings.eq(embeddings[:, :1]).all())
        is_layered = [not single and max(row) >= facts.vocab_size for row in unique]
        plan = [
            (index, layer) for index, layered in enumerate(is_layered) for layer in (range(layers) if layered else (0,))
        ]
        ids = torch.tensor([unique[index] for index, _ in plan], device=self.base.device)
        layer_of = torch.tensor([layer for _, layer in plan], device=self.base.device)
        encoded = [
            encode_token_rows(self.base, facts.name, ids[start:stop], layer_of[start:stop], embeddings)
            for start, stop in _chunks(len(plan), _ROWS_A_PASS)
        ]
        hidden = torch.cat([chunk[0] for chunk in encoded])
        pooled = torch.cat([chunk[1] for chunk in encoded])
        counts = [layers if layered else 1 for layered in is_layered]
        by_prompt = [chunk.expand(layers, -1, -1) for chunk in torch.split(hidden, counts)]
        starts = [sum(counts[:index]) for index in range(len(counts))]
        where = [unique.index(tuple(row)) for row in rows]
        if len(unique) == 1:
            stacked = by_prompt[0].unsqueeze(0).expand(len(rows), -1, -1, -1)
        else:
            stacked = torch.stack([by_prompt[index] for index in where])
        return stacked, pooled[[starts[index] for index in where]]


def encode_token_rows(
    base: BaseModel, encoder: str, ids: Tensor, layer_of: Tensor, embeddings: Tensor
) -> tuple[Tensor, Tensor]:
    """Run a text encoder on token rows, new words taking the embedding of the row's own layer.

    Differentiable in ``embeddings``.

    Args:
        base: whose text encoder runs, with whatever weights it has now.
        encoder: component name.
        ids: [rows, tokens], ids past the vocabulary standing for new words.
        layer_of: [rows], which cross-attention layer a row is for.
        embeddings: [num_words, layers, dim] of the new words.

    Returns:
        Hidden states [rows, tokens, dim] as the U-Net wants them (the last layer after its norm; for SDXL
        the one before the last) and the pooled output at EOS [rows, dim] (projected where the encoder has
        a projection).
    """
    facts = base.facts.encoder(encoder)
    model = base.text_encoders[encoder]
    is_word = ids >= facts.vocab_size
    safe_ids = ids.masked_fill(is_word, facts.bos_id)
    with _injected(model.get_input_embeddings(), is_word, ids - facts.vocab_size, layer_of, embeddings):
        is_xl = base.facts.family == "sdxl"
        outputs = model(input_ids=safe_ids, output_hidden_states=is_xl)
    hidden = outputs.hidden_states[-2] if is_xl else outputs.last_hidden_state
    eos = (ids == facts.eos_id).int().argmax(dim=1)
    pooled = outputs.last_hidden_state[torch.arange(len(ids), device=ids.device), eos]
    projection = getattr(model, "text_projection", None)
    return hidden, pooled if projection is None else projection(pooled)


@contextmanager
def _injected(
    table: nn.Module, is_word: Tensor, word_index: Tensor, layer_of: Tensor, embeddings: Tensor
) -> Iterator[None]:
    """Hook a token embedding so that new words get their layer's row; the hook is gone afterwards."""

    def replace_words(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not is_word.any():
            return output
        rows, columns = is_word.nonzero(as_tuple=True)
        values = embeddings[word_index[rows, columns], layer_of[rows]].to(output.dtype)
        return output.index_put((rows, columns), values)

    handle = table.register_forward_hook(replace_words)
    try:
        yield
    finally:
        handle.remove()


def _chunks(total: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, total)) for start in range(0, total, size)]
