"""All trainable parameters of a trainer: word embeddings and LoRA factors, a row a concept, nothing else."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from mos.base_model import BaseModel
from mos.errors import BadInputError
from mos.facts import tuned_linears
from mos.training.compiled import CompiledBlocks
from mos.training.config import SD1_MEAN_EMBEDDING_NORM, TrainingConfig
from mos.training.slots import SlotBank
from mos.training.slotted import bank_shapes, initial_lora, slotted

GROUPS = ("embedding", "text_encoder", "unet")
"""Parameter groups, each with its own learning rate."""

SHARED_OPTIONS = (
    "rank", "tuned", "num_words", "layerwise", "batch_size", "accumulation", "precision",
    "gradient_checkpointing", "compile", "attention_regulariser",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Tuned:
    group: str
    component: str
    names: tuple[str, ...]


class ConceptParameters:
    """The banks of one trainer.

    Args:
        base: gives shapes, device and the embeddings new words start from.
        config: of the first slot; its rank, layers, words and batch shape hold for all.
    """

    def __init__(self, base: BaseModel, config: TrainingConfig) -> None:
        self.base, self.config = base, config
        self._tuned = tuple(
            _Tuned(group="unet" if component == "unet" else "text_encoder", component=component, names=names)
            for component, names in tuned_linears(base.facts, config.tuned).items()
        )
        unet_layers = [name for tuned in self._tuned if tuned.component == "unet" for name in tuned.names]
        self._blocks = CompiledBlocks(base.unet, unet_layers) if config.compile else None
        dtype = torch.float64 if base.dtype == torch.float64 else torch.float32
        self.banks = {group: SlotBank(self._shapes(group), base.device, dtype) for group in GROUPS}

    @property
    def num_slots(self) -> int:
        """K."""
        return self.banks["embedding"].num_slots

    def fits(self, config: TrainingConfig) -> bool:
        """Say whether a concept with these options can share the step."""
        return all(getattr(config, name) == getattr(self.config, name) for name in SHARED_OPTIONS)

    def start(self, class_word: str, sigma: float, seed: int) -> None:
        """Add a concept at its beginning.

        V_rand is normal with ``sigma`` (scaled from Stable Diffusion 1.x to this base by the mean token
        norm), one draw for all layers; V_class is the class word's embedding; a single word starts at the
        class word. LoRA starts as a zero update.

        Raises:
            BadInputError: If the class word is not a single known token.
        """
        generator = torch.Generator().manual_seed(seed)
        tensors = self._initial_words(class_word, sigma, generator)
        for tuned in self._tuned:
            tensors |= initial_lora(self.base, tuned.component, tuned.names, self.config.rank, generator)
        for bank in self.banks.values():
            bank.append(bank.pack(tensors))

    def remove(self, slot: int) -> None:
        """Drop a concept's row from every bank."""
        for bank in self.banks.values():
            bank.remove(slot)

    def tensors(self, slot: int) -> dict[str, Tensor]:
        """Return copies of one concept's parameters by name."""
        return {name: tensor for bank in self.banks.values() for name, tensor in bank.unpack(slot).items()}

    def words(self, encoder: str) -> Tensor:
        """Return the trainable embeddings of all concepts, [K, num_words, layers or 1, dim]."""
        return self.banks["embedding"].leaves[f"embedding:{encoder}"]

    def hooked(self, components: tuple[str, ...]) -> ExitStack:
        """Return a context in which the components run with every concept's LoRA on its own rows."""
        stack = ExitStack()
        if self._blocks is not None and "unet" in components:
            stack.enter_context(self._blocks.active())
        for tuned in self._tuned:
            if tuned.component in components:
                leaves = self.banks[tuned.group].leaves
                stack.enter_context(slotted(self.base, tuned.component, tuned.names, self.config.rank, leaves))
        return stack

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for bank in self.banks.values():
            bank.zero_grad()

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to every concept's."""
        leaves = [leaf for bank in self.banks.values() for leaf in bank.leaves.values()]
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        for bank in self.banks.values():
            bank.add_gradients(gradients[: len(bank.leaves)])
            gradients = gradients[len(bank.leaves) :]

    def unscale(self, scales: list[float]) -> list[float]:
        """Divide every concept's gradient by its loss scale; return the gradients' norms, a concept each."""
        if any(scale != 1 for scale in scales):
            for bank in self.banks.values():
                bank.gradient.div_(bank.gradient.new_tensor(scales)[:, None])
        squares = [bank.squared_gradient_norms() for bank in self.banks.values()]
        norms: list[float] = torch.stack(squares).sum(dim=0).sqrt().tolist()
        return norms

    def scale_gradient(self, slot: int, factor: float) -> None:
        """Multiply one concept's gradient."""
        for bank in self.banks.values():
            bank.gradient[slot] *= factor

    @torch.no_grad()
    def embedding_norms(self) -> list[float]:
        """Return the mean norm of every concept's rows in the first text encoder."""
        rows = self.words(self.base.facts.encoders[0].name).detach()
        norms: list[float] = rows.norm(dim=-1).mean(dim=(1, 2)).tolist()
        return norms

    def _shapes(self, group: str) -> dict[str, tuple[int, ...]]:
        if group == "embedding":
            layers = self.base.facts.num_cross_attention_layers if self.config.layerwise else 1
            return {
                f"embedding:{encoder.name}": (self.config.num_words, layers, encoder.hidden_dim)
                for encoder in self.base.facts.encoders
            }
        shapes: dict[str, tuple[int, ...]] = {}
        for tuned in self._tuned:
            if tuned.group == group:
                shapes |= bank_shapes(self.base, tuned.component, tuned.names, self.config.rank)
        return shapes

    def _initial_words(self, class_word: str, sigma: float, generator: torch.Generator) -> dict[str, Tensor]:
        layers = self.base.facts.num_cross_attention_layers if self.config.layerwise else 1
        tensors = {}
        for encoder in self.base.facts.encoders:
            table = self.base.text_encoders[encoder.name].get_input_embeddings().weight
            start = table[class_token(self.base, encoder.name, class_word)].detach().float().cpu()
            spread = sigma * encoder.mean_embedding_norm / SD1_MEAN_EMBEDDING_NORM * (768 / encoder.hidden_dim) ** 0.5
            random = torch.randn(encoder.hidden_dim, generator=generator) * spread
            words = (random, start) if self.config.num_words == 2 else (start,)
            tensors[f"embedding:{encoder.name}"] = torch.stack(words)[:, None, :].expand(-1, layers, -1)
        return tensors


def class_token(base: BaseModel, encoder: str, class_word: str) -> int:
    """Return the single token of a class word.

    Raises:
        BadInputError: If the base does not know the word as one token; says what it reads instead.
    """
    tokenizer = base.tokenizers[encoder]
    ids = tokenizer(class_word, add_special_tokens=False).input_ids
    if len(ids) != 1 or not class_word.isascii() or not class_word.islower() or not class_word.isalpha():
        pieces = " + ".join(tokenizer.tokenize(class_word)) or "nothing"
        raise BadInputError(
            f"class word {class_word!r}: expected one lower-case word that the base knows as a single token, "
            f"it reads {pieces}; choose a plainer word such as cat, person or house"
        )
    return int(ids[0])
