"""From a concept or a fused model to the files of another tool, with the loss measured where there is one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from mos.base_model import BaseModel
from mos.card import card_metadata
from mos.concept import check_name
from mos.edlora.adapter import Adapter, check_adapter
from mos.errors import BadInputError
from mos.formats.embedding_loss import EmbeddingLoss, measure_losses
from mos.formats.merged import write_merged
from mos.formats.metadata import (
    ExportDetails,
    hash_metadata,
    kohya_metadata,
    modelspec_metadata,
    tensor_hash,
)
from mos.formats.tensors import (
    all_finite,
    diffusers_tensors,
    inversion_tensors,
    kohya_tensors,
    layerwise_tensors,
    mixofshow_table,
    webui_inversion_tensors,
)
from mos.tensorfile import header_bytes, layout, write_atomically

Target = Literal["diffusers", "kohya", "a1111", "comfyui", "mixofshow", "merged"]
TARGETS: tuple[str, ...] = get_args(Target)

_FOLDERS = {"kohya": ("", ""), "a1111": ("models/Lora", "embeddings"), "comfyui": ("models/loras", "models/embeddings")}


class ExportError(BadInputError):
    """Raised when a concept or fused model cannot be written for another tool."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written.

    Args:
        files: every file, in the order written.
        losses: one a word and encoder where the target has no room for a row a layer; empty where it has.
        tensor_hash: sha256 of the LoRA file's data, empty where the target has no LoRA file.
        usage: how to use it there, in one or two lines.
    """

    files: tuple[Path, ...]
    losses: tuple[EmbeddingLoss, ...]
    tensor_hash: str
    usage: str


def export(
    adapter: Adapter,
    base: BaseModel,
    target: str,
    directory: str | Path,
    *,
    name: str,
    details: ExportDetails,
    half: bool = False,
) -> ExportResult:
    """Write a concept or fused model for another tool.

    A fused model's LoRA is exact in every target: its rank is the sum of its concepts' ranks.

    Args:
        adapter: LoRA and words.
        base: what they belong to; only ``merged`` (and a fused model's ``mixofshow``) writes its weights.
        target: one of :data:`TARGETS`.
        directory: made if need be; nothing else in it is touched.
        name: of the files, an ordinary lower-case name.
        details: title, licence, words and so on for the metadata.
        half: write float16; the default float32 loses nothing.

    Raises:
        ExportError: For an unknown target, or one that cannot hold this adapter.
        BadInputError: If the adapter does not fit the base.
    """
    if target not in TARGETS:
        raise ExportError(f"export target {target!r}: expected one of {', '.join(TARGETS)}")
    check_name(name, "export name")
    check_adapter(base, adapter)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    job = _Export(adapter=adapter, base=base, target=target, directory=directory, name=name, details=details, half=half)
    if target == "diffusers":
        return job.to_diffusers()
    if target == "mixofshow" and len(adapter.vocabulary) == 1:
        return job.to_mixofshow()
    if target in ("merged", "mixofshow"):
        return job.to_merged()
    return job.to_kohya()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Export:
    adapter: Adapter
    base: BaseModel
    target: str
    directory: Path
    name: str
    details: ExportDetails
    half: bool

    def to_diffusers(self) -> ExportResult:
        """One LoRA file that also holds every layer's words, and one textual inversion a concept and encoder."""
        facts = self.base.facts
        tensors = diffusers_tensors(self.adapter, facts) | layerwise_tensors(self.adapter)
        metadata = {"format": "pt"} | self._own_metadata()
        lora = self.directory / "pytorch_lora_weights.safetensors"
        digest = self._write(lora, tensors, metadata)
        files, calls = [lora], [f'pipe.load_lora_weights("{self.directory}")']
        for concept in self.adapter.vocabulary:
            for encoder in concept.embeddings:
                suffix = "" if encoder == "text_encoder" else "_2"
                path = self.directory / f"{concept.word.strip('<>')}{suffix}.safetensors"
                self._write(path, inversion_tensors(concept, encoder, concept.word), {"format": "pt"})
                files.append(path)
                where = f", text_encoder=pipe.text_encoder{suffix}, tokenizer=pipe.tokenizer{suffix}" * bool(suffix)
                calls.append(f'pipe.load_textual_inversion("{path}"{where})')
        if facts.family == "sdxl":
            calls.append("pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id")
        return ExportResult(
            files=tuple(files),
            losses=measure_losses(self.adapter.vocabulary),
            tensor_hash=digest,
            usage="\n".join([*calls, f'pipe("a photo of {self._words()}")']),
        )

    def to_kohya(self) -> ExportResult:
        """A LoRA in kohya's spelling and a textual inversion a concept, where the tool looks for them."""
        facts = self.base.facts
        rank = max((update.rank for table in self.adapter.linears.values() for update in table.values()), default=0)
        loras, embeddings = (self.directory / folder for folder in _FOLDERS[self.target])
        for folder in (loras, embeddings):
            folder.mkdir(parents=True, exist_ok=True)
        metadata = kohya_metadata(facts, self.details, rank) | self._own_metadata()
        lora = loras / f"{self.name}.safetensors"
        if not self.adapter.linears:
            files, digest = [], ""
        else:
            files, digest = [lora], self._write(lora, kohya_tensors(self.adapter, facts), metadata)
        for concept in self.adapter.vocabulary:
            word = concept.word.strip("<>")
            suffix = "-words" if embeddings == loras and word == self.name else ""
            path = embeddings / f"{word}{suffix}.safetensors"
            self._write(path, webui_inversion_tensors(concept), {"format": "pt", "modelspec.title": word})
            files.append(path)
        return ExportResult(
            files=tuple(files),
            losses=measure_losses(self.adapter.vocabulary),
            tensor_hash=digest,
            usage=self._webui_usage(has_lora=bool(digest)),
        )

    def to_mixofshow(self) -> ExportResult:
        """The reference's own file; it holds a row a layer, so nothing is lost."""
        if len(self.base.facts.encoders) != 1:
            raise ExportError(f"mixofshow: the reference knows one text encoder, {self.base.facts.name} has two")
        path = self.directory / f"{self.name}.pth"
        table = mixofshow_table(self.adapter, self.base.facts)
        temporary = path.with_name(f".{path.name}.partial")
        try:
            torch.save(table, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        words = "".join(f"{word} " for word in self.adapter.vocabulary[0].words).strip()
        return ExportResult(
            files=(path,),
            losses=(),
            tensor_hash="",
            usage=f"lora_path for gradient fusion in Mix-of-Show; write the concept as {words}",
        )

    def to_merged(self) -> ExportResult:
        """A whole pipeline with the updates in its weights and the words in its tokenizers."""
        layered = self.target == "mixofshow"
        files = write_merged(self.adapter, self.base, self.directory, layered_words=layered, half=self.half)
        return ExportResult(
            files=files,
            losses=() if layered else measure_losses(self.adapter.vocabulary),
            tensor_hash="",
            usage=f'DiffusionPipeline.from_pretrained("{self.directory}")("a photo of {self._words()}")',
        )

    def _own_metadata(self) -> dict[str, str]:
        """modelspec, and a concept's card as the importer reads it back."""
        own, card = modelspec_metadata(self.base.facts, self.details), self.details.card
        return own if card is None else own | card_metadata(card) | {"mos.title": card.title}

    def _write(self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
        """Write a safetensors file with its own tensor hash in the metadata; return the hash."""
        dtype = torch.float16 if self.half else torch.float32
        ready = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in tensors.items()}
        if not all_finite(ready):
            raise ExportError(f"{path}: a tensor is not finite{' as float16; leave --half out' if self.half else ''}")
        kind = "F16" if self.half else "F32"
        entries = layout({key: (kind, tuple(tensor.shape)) for key, tensor in ready.items()})
        data = [ready[key].numpy().astype("<f2" if self.half else "<f4", copy=False).tobytes() for key in sorted(ready)]
        digest = tensor_hash(data)
        header = header_bytes({**metadata, **hash_metadata(digest)}, entries)
        write_atomically(path, [len(header).to_bytes(8, "little") + header, *data])
        return digest

    def _words(self) -> str:
        return " and ".join(concept.word for concept in self.adapter.vocabulary) or "it"

    def _webui_usage(self, *, has_lora: bool) -> str:
        words = [concept.word.strip("<>") for concept in self.adapter.vocabulary]
        if self.target == "comfyui":
            typed = " ".join(f"embedding:{word}" for word in words)
            return f"Load LoRA {self.name} for model and CLIP at 1.0; prompt: {typed}"
        lora = f"<lora:{self.name}:1> " if has_lora else ""
        return f"prompt: {lora}{' '.join(words)}"
