"""A tiny random CLIPModel, the real class: its scores mean nothing, its wiring is CLIP's."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from mos.evaluation.scorer import ClipScorer
from mos.random_base import small_tokenizer


@pytest.fixture(scope="session")
def scorer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scorer as `save_pretrained` leaves it."""
    return write_scorer(tmp_path_factory.mktemp("scorer"))


def write_scorer(folder: Path) -> Path:
    """Save a tiny random CLIPModel with its tokenizer into `folder`."""
    tokenizer = small_tokenizer(max_length=24)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = common | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config=common | {"image_size": 32, "patch_size": 8}, projection_dim=12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scorer(scorer_folder: Path) -> ClipScorer:
    return ClipScorer.load(scorer_folder)
