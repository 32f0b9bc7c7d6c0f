"""Random adapters and words for tests."""

import torch

from mos.base_model import BaseModel
from mos.edlora.adapter import Adapter, ConceptWords
from mos.edlora.lora import LowRank


def random_words(base: BaseModel, word: str, *, seed: int = 0, num_words: int = 2) -> ConceptWords:
    """Words of a concept whose embedding differs in every layer."""
    generator = torch.Generator().manual_seed(seed)
    layers = base.facts.num_cross_attention_layers
    name = word.strip("<>")
    return ConceptWords(
        ref=f"test/{name}@1",
        word=word,
        words=(f"<{name}-rand>", f"<{name}-class>")[:num_words],
        class_word="cat",
        embeddings={
            encoder.name: torch.randn(num_words, layers, encoder.hidden_dim, generator=generator) * 0.1
            for encoder in base.facts.encoders
        },
    )


def random_adapter(base: BaseModel, *words: str, rank: int = 2, seed: int = 0, size: float = 0.05) -> Adapter:
    """An adapter that tunes every attention linear by a random low-rank update."""
    generator = torch.Generator().manual_seed(seed)
    linears = {
        component: {
            name: LowRank(
                up=torch.randn(base.facts.linear_shapes[component][name][0], rank, generator=generator) * size,
                down=torch.randn(rank, base.facts.linear_shapes[component][name][1], generator=generator),
            )
            for name in names
        }
        for component, names in base.facts.attention_linears.items()
    }
    vocabulary = tuple(random_words(base, word, seed=seed + index) for index, word in enumerate(words))
    return Adapter(linears=linears, vocabulary=vocabulary)
