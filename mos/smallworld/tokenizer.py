"""The base's tokenizer: CLIP's byte-level BPE with merges learnt until every word of the world is one token."""

from collections import Counter
from itertools import pairwise

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mos.smallworld.captions import world_words

MAX_TOKENS = 48
"""Length of every prompt with its two special tokens; the longest full caption of three subjects fits."""

_END = "</w>"
_START_TOKEN, _END_TOKEN = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(words: tuple[str, ...] | None = None) -> CLIPTokenizer:
    """A CLIPTokenizer that spells any text and holds each given word as one token."""
    merges = learn_merges(words or world_words())
    alphabet = sorted(bytes_to_unicode().values())
    symbols = [*alphabet, *(symbol + _END for symbol in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}
    for special in (_START_TOKEN, _END_TOKEN):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=_END_TOKEN,
        bos_token=_START_TOKEN,
        eos_token=_END_TOKEN,
        pad_token=_END_TOKEN,
        model_max_length=MAX_TOKENS,
    )


def learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Greedy BPE (Sennrich et al., arXiv:1508.07909) on a word list, until each word is a single symbol.

    Ties go to the pair that sorts first, so the same words always give the same merges.
    """
    spellings = [[*word[:-1], word[-1] + _END] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for spelling in spellings for pair in pairwise(spelling))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spellings = [_merged(spelling, best) for spelling in spellings]


def _merged(spelling: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for symbol in spelling:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return result
