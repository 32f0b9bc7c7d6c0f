"""Malformed artifacts made by code: each with the cause a strict reader must name."""

import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

from mos.artifact import artifact_bytes
from mos.base_model import BaseModel
from tests.mos.artifacts import random_edlora

Case = tuple[str, bytes, str]
"""Name, bytes, and a pattern of the cause."""


class Sample:
    """A valid artifact taken apart."""

    def __init__(self, base: BaseModel) -> None:
        self.raw = b"".join(artifact_bytes(random_edlora(base)))
        length = int.from_bytes(self.raw[:8], "little")
        self.header_text = self.raw[8 : 8 + length]
        self.data = self.raw[8 + length :]
        self.names = sorted(name for name in self.header() if name != "__metadata__")

    def header(self) -> dict[str, Any]:
        """A fresh copy of the header."""
        return json.loads(self.header_text)

    def changed(self, edit: Callable[[dict[str, Any]], object]) -> bytes:
        """The file with its header edited and written canonically again."""
        header = self.header()
        edit(header)
        if isinstance(header.get("__metadata__"), dict):
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        return pack(dump(header), self.data)

    def with_metadata(self, key: str, value: Any) -> bytes:
        """The file with one metadata entry set, or removed if None."""

        def edit(header: dict[str, Any]) -> None:
            if value is None:
                del header["__metadata__"][key]
            else:
                header["__metadata__"][key] = value

        return self.changed(edit)

    def with_float(self, name: str, position: int, value: float) -> bytes:
        """The file with one float of a tensor replaced."""
        start = self.header()[name]["data_offsets"][0] + 4 * position
        data = self.data[:start] + struct.pack("<f", value) + self.data[start + 4 :]
        return pack(self.header_text, data)

    def rebuilt(self, edit: Callable[[dict[str, tuple[str, list[int], bytes]]], object]) -> bytes:
        """The file laid out again after tensors (dtype, shape, bytes) were added, removed or replaced."""
        header = self.header()
        tensors = {
            name: (
                header[name]["dtype"],
                header[name]["shape"],
                self.data[slice(*header[name]["data_offsets"])],
            )
            for name in self.names
        }
        edit(tensors)
        document: dict[str, Any] = {"__metadata__": header["__metadata__"]}
        data = b""
        for name in sorted(tensors):
            dtype, shape, content = tensors[name]
            document[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
            data += content
        return pack(dump(document), data)


def dump(header: dict[str, Any]) -> bytes:
    """JSON in the canonical form, padded."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def pack(header: bytes, data: bytes) -> bytes:
    """Length, header, data."""
    return len(header).to_bytes(8, "little") + header + data


def truncated(sample: Sample) -> Iterator[Case]:
    total, header = len(sample.raw), 8 + len(sample.header_text)
    for size in (0, 1, 4, 7):
        yield f"{size} bytes", sample.raw[:size], "ends before the header length"
    for size in (8, 9, 100, header // 2, header - 1):
        yield f"{size} bytes", sample.raw[:size], "header of"
    for part in range(24):
        size = header + (total - header) * part // 24
        yield f"{size} bytes", sample.raw[:size], "cut off"
    for missing in (1, 2, 3, 4):
        yield f"{missing} missing", sample.raw[:-missing], "cut off"


def header_length_lies(sample: Sample) -> Iterator[Case]:
    rest, length = sample.raw[8:], len(sample.header_text)
    for claim in (1 << 20, (1 << 20) - 1, len(sample.raw) * 2, len(sample.raw) - 7):
        cause = "header of" if claim > len(rest) else "."
        yield f"claims {claim}", claim.to_bytes(8, "little") + rest, cause
    for claim in ((1 << 20) + 1, 1 << 32, 1 << 62, (1 << 64) - 1):
        yield f"claims {claim}", claim.to_bytes(8, "little") + rest, "at most 1048576"
    for claim in (0, 1, 2, length // 2, length - 8, length - 300):
        yield f"claims {claim}", claim.to_bytes(8, "little") + rest, "JSON|begin with|cut off|bytes after"
    for more in (1, 8, 64):
        yield f"claims {more} more", (length + more).to_bytes(8, "little") + rest, "UTF-8|JSON|cut off"


def not_json(sample: Sample) -> Iterator[Case]:
    good = sample.header_text
    texts = {
        "empty object cut": (b"{", "JSON"),
        "array": (b"[]", "begin with"),
        "text": (b'"x"', "begin with"),
        "space first": (b" " + good, "begin with"),
        "byte order mark": (b"\xef\xbb\xbf" + good, "begin with"),
        "latin-1": (b'{"\xe9":1}', "UTF-8"),
        "surrogate": (b'{"\xed\xa0\x80":1}', "UTF-8"),
        "nul bytes": (b"{" + b"\x00" * 64, "JSON"),
        "deep": (b'{"a":' + b"[" * 200_000, "nested|JSON"),
        "single quotes": (good.replace(b'"', b"'"), "JSON"),
        "comment": (good.rstrip()[:-1] + b"/* */}", "JSON"),
        "two documents": (good.rstrip() + b"{}", "JSON"),
        "long number": (b'{"a":' + b"9" * 5000 + b"}", "JSON|exactly"),
        "trailing comma": (good.rstrip()[:-1] + b",}", "JSON"),
        "unquoted key": (good.replace(b'"dtype"', b"dtype", 1), "JSON"),
        "nan": (b'{"a":NaN}', "exactly"),
    }
    for name, (text, cause) in texts.items():
        yield name, pack(text, sample.data), cause


def duplicate_keys(sample: Sample) -> Iterator[Case]:
    text = sample.header_text.rstrip()
    for name in sample.names[::6]:
        entry = json.dumps(sample.header()[name], separators=(",", ":"))
        doubled = text[:-1] + f',"{name}":{entry}}}'.encode()
        yield f"tensor {name}", pack(doubled, sample.data), "twice"
    for key in sample.header()["__metadata__"]:
        doubled = text.replace(f'"{key}":'.encode(), f'"{key}":"x","{key}":'.encode(), 1)
        yield f"metadata {key}", pack(doubled, sample.data), "twice"
    for field in (b'"dtype":', b'"shape":', b'"data_offsets":'):
        doubled = text.replace(field, field + b"[]," + field, 1)
        yield f"field {field.decode()}", pack(doubled, sample.data), "twice"
    yield "metadata itself", pack(b'{"__metadata__":{},' + text[1:], sample.data), "twice"


def extents(sample: Sample) -> Iterator[Case]:
    for index in range(1, len(sample.names), 5):
        name = sample.names[index]

        def shift(header: dict[str, Any], by: int, name: str = name) -> None:
            header[name]["data_offsets"] = [offset + by for offset in header[name]["data_offsets"]]

        yield f"{name} earlier", sample.changed(lambda header, shift=shift: shift(header, -4)), "overlaps"
        yield f"{name} later", sample.changed(lambda header, shift=shift: shift(header, 4)), "hole|overlaps"
    first = sample.names[0]
    values = {
        "negative": ([-4, 4], "offsets"),
        "floats": ([0.0, 4.0], "offsets"),
        "texts": (["0", "4"], "offsets"),
        "bools": ([False, True], "offsets"),
        "null": (None, "offsets"),
        "one": ([0], "offsets"),
        "three": ([0, 4, 8], "offsets"),
        "backwards": ([8, 0], "before it begins"),
        "huge": ([0, 1 << 40], "offsets"),
        "wide": ([0, 1 << 30], "needs"),
        "object": ({}, "offsets"),
    }
    for label, (value, cause) in values.items():
        yield label, sample.changed(lambda header, v=value: header[first].update(data_offsets=v)), cause
    yield (
        "all at zero",
        sample.changed(
            lambda header: [
                header[name].update(data_offsets=[0, header[name]["data_offsets"][1] - header[name]["data_offsets"][0]])
                for name in sample.names
            ]
        ),
        "overlaps",
    )


def shapes_and_types(sample: Sample) -> Iterator[Case]:
    name = sample.names[-1]
    shapes: dict[str, tuple[Any, str]] = {
        "negative": ([-1, 4], "shape"),
        "floats": ([2.0, 4.0], "shape"),
        "bools": ([True, 4], "shape"),
        "texts": (["2", "4"], "shape"),
        "null": (None, "shape"),
        "number": (8, "shape"),
        "huge": ([1 << 31, 1 << 31], "shape"),
        "overflow": ([1 << 30, 1 << 30, 1 << 30, 16], "needs"),
        "many sides": ([1] * 5, "shape"),
        "too small": ([1, 1], "needs"),
        "too large": ([999, 999], "needs"),
        "empty": ([0, 7], "needs"),
        "none": ([], "needs"),
    }
    for label, (shape, cause) in shapes.items():
        yield f"shape {label}", sample.changed(lambda header, s=shape: header[name].update(shape=s)), cause
    for dtype in ("F8", "f32", "", "I128", "C64", None, 1, ["F32"], "U4", "object"):
        yield f"type {dtype}", sample.changed(lambda header, d=dtype: header[name].update(dtype=d)), "unknown type"
    for dtype, cause in {"F64": "needs", "F16": "needs", "I32": "expected F32", "I64": "needs"}.items():
        yield f"relabelled {dtype}", sample.changed(lambda header, d=dtype: header[name].update(dtype=d)), cause
    yield "extra field", sample.changed(lambda header: header[name].update(stride=[1])), "exactly"
    for field in ("dtype", "shape", "data_offsets"):
        yield f"no {field}", sample.changed(lambda header, f=field: header[name].pop(f)), "exactly"
    for value in (None, [], "x", 3):
        yield f"entry {value}", sample.changed(lambda header, v=value: header.__setitem__(name, v)), "exactly"
    for other in sample.names[:40:4]:

        def flip(header: dict[str, Any], other: str = other) -> None:
            header[other]["shape"] = header[other]["shape"][::-1]

        yield f"transposed {other}", sample.changed(flip), "rank|needs"


def names(sample: Sample) -> Iterator[Case]:
    zeros = ("F32", [2, 2], b"\x00" * 16)
    foreign = (
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
        "unet.__class__.lora_A.weight",
        "unet.../../etc/passwd.lora_A.weight",
        "/etc/passwd",
        "..",
        "",
        "unet",
        "data.pkl",
        "edlora.embedding.text_encoder.x",
        "edlora.embedding.text_encoder_3.0",
        "edlora.embedding.text_encoder",
        "text_encoder.TEXT.lora_A.weight",
        "unet.a b.lora_A.weight",
        "unet.ü.lora_A.weight",
        "unet.x.lora_C.weight",
        "unet.x.alpha",
        "x" * 5000,
        "vae.encoder.lora_A.weight",
        "unet.x.lora_A.weight\n",
        "unet.x.lora_A.weight ",
    )
    for name in foreign:
        yield (
            f"foreign {name[:40]!r}",
            sample.rebuilt(lambda t, n=name: t.__setitem__(n, zeros)),
            "foreign tensor|missing",
        )
    pair = {"unet.mid_block.nowhere.lora_A.weight": zeros, "unet.mid_block.nowhere.lora_B.weight": zeros}
    yield "foreign pair", sample.rebuilt(lambda t: t.update(pair)), "foreign tensor unet.mid_block.nowhere"
    without_prefix = {"text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight": zeros,
                      "text_encoder.encoder.layers.0.self_attn.q_proj.lora_B.weight": zeros}  # fmt: skip
    yield "no text_model", sample.rebuilt(lambda t: t.update(without_prefix)), "foreign tensor"
    for index in range(2, 10):
        key = f"edlora.embedding.text_encoder.{index}"
        yield f"word {index}", sample.rebuilt(lambda t, k=key: t.__setitem__(k, zeros)), "of 2 words"
    yield (
        "second encoder",
        sample.rebuilt(lambda t: t.__setitem__("edlora.embedding.text_encoder_2.0", zeros)),
        "foreign tensor",
    )
    for name in sample.names[::3]:
        yield f"missing {name}", sample.rebuilt(lambda t, n=name: t.pop(n)), "missing"
    yield "only metadata", sample.rebuilt(lambda t: t.clear()), "missing"


def wrong_sizes(sample: Sample) -> Iterator[Case]:
    def resized(name: str, shape: list[int]) -> bytes:
        return sample.rebuilt(lambda t: t.__setitem__(name, ("F32", shape, b"\x00" * 4 * shape[0] * shape[1])))

    for name in [name for name in sample.names if "lora_A" in name][:8]:
        into = sample.header()[name]["shape"][1]
        yield f"rank of {name}", resized(name, [3, into]), "rank 3, its card says 2"
        yield f"input of {name}", resized(name, [2, into + 1]), "needs"
        partner = name.replace("lora_A", "lora_B")
        out = sample.header()[partner]["shape"][0]
        yield f"output of {partner}", resized(partner, [out + 8, 2]), "needs"
    word = "edlora.embedding.text_encoder.0"
    for shape in ([3, 16], [5, 16], [4, 8], [16, 4], [1, 1]):
        yield f"words {shape}", resized(word, shape), "needs"
    yield (
        "half precision",
        sample.rebuilt(lambda t: t.__setitem__(word, ("F16", [4, 16], b"\x00" * 128))),
        "expected F32",
    )
    yield "flat", sample.rebuilt(lambda t: t.__setitem__(word, ("F32", [64], b"\x00" * 256))), "two sides"
    yield "empty", sample.rebuilt(lambda t: t.__setitem__(word, ("F32", [0, 16], b""))), "two sides"


def values(sample: Sample) -> Iterator[Case]:
    for index, name in enumerate(sample.names[::7]):
        yield f"nan in {name}", sample.with_float(name, index % 4, float("nan")), f"{re.escape(name)} has NaN"
        yield f"inf in {name}", sample.with_float(name, 1, float("inf")), f"{re.escape(name)} has infinite"
        yield f"-inf in {name}", sample.with_float(name, 2, float("-inf")), f"{re.escape(name)} has infinite"
        yield f"1e30 in {name}", sample.with_float(name, 3, 1e30), "at most 10000"
    word = "edlora.embedding.text_encoder.1"
    yield "long word", sample.with_float(word, 0, 500.0), "mean token"
    downs = [name for name in sample.names if "lora_A" in name]
    for name in downs[::10]:
        yield f"large {name}", sample.with_float(name, 0, 9000.0), "layer's own"


def metadata(sample: Sample) -> Iterator[Case]:
    entries = sample.header()["__metadata__"]
    for key in entries:
        cause = "no mos artifact" if key == "mos.format" else "metadata"
        yield f"without {key}", sample.with_metadata(key, None), cause
        yield f"number for {key}", sample.with_metadata(key, 1), "map of texts"
    wrong = {
        "mos.format": ("0", "2", "99", "x", "1.0", "", "-1"),
        "mos.words": ("[]", "{}", "x", '["cat"]', '["<a>","<a>"]', '["<A>"]', '["<a>", "<b>"]', "[1,2]", "[" * 999),
        "mos.class_word": ("", "Cat", "a cat", "<cat>", "c" * 41, "k\u00e4tzchen"),
        "mos.kind": ("", "animal", "Pet"),
        "mos.base_name": ("", "x" * 300, "a\nb"),
        "mos.family": ("", "sd3", "SD1"),
        "mos.base_fingerprint": ("{}", "[]", "x", '{"unet":"aa","text_encoder":"bb"}', "null"),
        "mos.rank": ("", "-1", "02", "257", "2.0", "x", "9" * 5000, "3", "0"),
        "mos.tuned": ("[]", "{}", '["everything"]', '["unet.attention","text_encoder.attention"]', "null"),
        "mos.seed": ("", "-1", "x", str(1 << 63), " 0"),
        "mos.recipe": ("[]", "x", '{"a":1}', '{"a":"b" }', "null", '{"a":"\\u0007"}'),
        "modelspec.title": ("x" * 300, "a\x00b"),
        "modelspec.architecture": ("", "stable-diffusion-xl-v1-base/lora"),
        "modelspec.sai_model_spec": ("1.0.1", ""),
    }
    for key, texts in wrong.items():
        for text in texts:
            cause = "newer mos" if key == "mos.format" and text in ("2", "99") else "."
            yield f"{key} {text[:30]!r}", sample.with_metadata(key, text), cause
    for key in ("ss_network_module", "format", "mos.extra", "mos.Format", ""):
        yield f"extra {key!r}", sample.with_metadata(key, "pt"), "unknown or unusual metadata"
    yield "huge", sample.with_metadata("mos.note", "x" * 100_000), "metadata of"
    yield (
        "many",
        sample.changed(lambda header: header["__metadata__"].update({f"k{index}": "v" for index in range(20_000)})),
        "metadata of|header of",
    )
    for value in (None, [], "x", 1):
        yield f"metadata {value}", sample.changed(lambda header, v=value: header.update(__metadata__=v)), "map of texts"
    yield "none", sample.changed(lambda header: header.pop("__metadata__")), "canonical|no mos artifact"
    foreign = json.dumps({"text_encoder": "0" * 64, "unet": "0" * 64}, separators=(",", ":"))
    yield "another base", sample.with_metadata("mos.base_fingerprint", foreign), "differs from"


def polyglots(sample: Sample) -> Iterator[Case]:
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", b"\x80\x02cos\nsystem\n.")
    zip_bytes = archive.getvalue()
    yield "a zip alone", zip_bytes, "header of|begin"
    yield "zip behind", sample.raw + zip_bytes, "bytes after the last tensor"
    for label, head in {
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.",
        "png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
        "gif": b"GIF89a\x01\x00\x01\x00\x80\x00",
        "elf": b"\x7fELF\x02\x01\x01\x00" + b"\x00" * 8,
        "exe": b"MZ\x90\x00\x03\x00\x00\x00\x04\x00",
        "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "html": b"<!DOCTYPE html><script>alert(1)</script>",
        "shell": b"#!/bin/sh\nrm -rf /\n",
        "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    }.items():
        yield f"{label} in front", head + sample.raw, "header of|begin with|JSON"
        yield f"{label} behind", sample.raw + head, "bytes after the last tensor"
    yield "newline behind", sample.raw + b"\n", "1 bytes after"
    yield "zeros behind", sample.raw + b"\x00" * 4096, "4096 bytes after"
    inside = _zip_inside(sample, zip_bytes)
    yield "zip inside the last tensor", inside, "zip archive as well|NaN|at most"


def _zip_inside(sample: Sample, zip_bytes: bytes) -> bytes:
    end = zip_bytes[zip_bytes.rindex(b"PK\x05\x06") :]
    return sample.raw[: -len(end) - 2] + end + b"\x00\x00"


def unusual_forms(sample: Sample) -> Iterator[Case]:
    header = sample.header()
    yield "indented", pack(json.dumps(header, indent=1).encode(), sample.data), "canonical"
    yield "spaced", pack(json.dumps(header).encode(), sample.data), "canonical"
    yield "padded more", pack(sample.header_text + b" " * 8, sample.data), "canonical"
    yield "tab at the end", pack(sample.header_text.rstrip() + b"\t", sample.data), "canonical"
    backwards = dict(reversed(list(header.items())))
    yield "reordered", pack(dump(backwards), sample.data), "canonical"
    escaped = sample.header_text.replace(b'"mos.kind"', b'"mos.\\u006bind"')
    yield "escaped", pack(escaped, sample.data), "canonical"
    fields = {name: dict(reversed(list(entry.items()))) for name, entry in header.items()}
    yield "fields reordered", pack(dump(fields), sample.data), "canonical"
    yield "unpadded", pack(sample.header_text.rstrip() + b" " * 3, sample.data), "canonical"
    many = {f"t{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(2001)}
    yield "2001 tensors", pack(dump(many), b""), "2001 tensors, at most 2000"
    flood = {f"t{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(100_000)}
    yield "100000 tensors", pack(dump(flood), b""), "at most 1048576"


FAMILIES: tuple[Callable[[Sample], Iterator[Case]], ...] = (
    truncated, header_length_lies, not_json, duplicate_keys, extents, shapes_and_types, names, wrong_sizes,
    values, metadata, polyglots, unusual_forms,
)  # fmt: skip
