"""From command-line words to specs: a TOML file, overridden by options."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from jobs.specs import ConceptSpec, FusionSpec, load_spec
from mos.errors import BadInputError, UsageError

Spec = TypeVar("Spec", ConceptSpec, FusionSpec)


def concept_spec(path: Path | None, fields: Mapping[str, Any], options: Sequence[str]) -> ConceptSpec:
    """The spec of a concept from a file, from options, or from both (options win).

    Raises:
        UsageError: If something needed is missing.
        BadInputError: If the file or a value cannot be used.
    """
    given = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
    given = {name: value for name, value in given.items() if value is not None}
    values = dict(_loaded(path, ConceptSpec).__dict__) if path else {}
    values |= given | {"options": dict(values.get("options", {})) | parse_options(options)}
    values["pictures"] = whole_path(values.get("pictures") or "")
    values["base"] = whole_path(values.get("base") or "")
    missing = [name for name in ("owner", "name", "class_word", "pictures") if not values.get(name)]
    if missing:
        flags = ", ".join({"class_word": "--class"}.get(name, f"--{name}") for name in missing)
        raise UsageError(f"a concept needs {flags} too; `mos submit concept --help` shows an example")
    return ConceptSpec(**values)


def fusion_spec(
    path: Path | None,
    concepts: Sequence[str],
    out: Path | None,
    options: Sequence[str],
    *,
    base: str | None,
    publish: str,
    allow_unlisted: bool,
) -> FusionSpec:
    """The spec of a fusion from a file, from options, or from both (options win).

    Raises:
        UsageError: If concepts or the output folder are missing.
        BadInputError: If the file or a value cannot be used.
    """
    loaded = _loaded(path, FusionSpec) if path else None
    named = tuple(concepts) or (loaded.concepts if loaded else ())
    folder = str(out.absolute()) if out else (whole_path(loaded.out) if loaded else "")
    if not named or not folder:
        raise UsageError(
            "a fusion needs concepts and --out; such as mos fuse --from-registry alice/robot bob/cat --out d"
        )
    spec = replace(loaded, concepts=named, out=folder) if loaded else FusionSpec(concepts=named, out=folder)
    return replace(
        spec,
        options=dict(spec.options) | parse_options(options),
        base=whole_path(base or spec.base),
        publish=publish or spec.publish,
        allow_unlisted=allow_unlisted or spec.allow_unlisted,
    )


def whole_path(name: str) -> str:
    """A file or folder of this machine by its whole path, which other processes can open; anything else as it is."""
    return str(Path(name).expanduser().absolute()) if name and Path(name).expanduser().exists() else name


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs; values are written as in TOML, bare words are text.

    Raises:
        BadInputError: If one is not of that form.
    """
    return dict(map(_parse_option, texts))


def _parse_option(text: str) -> tuple[str, Any]:
    import tomllib

    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise BadInputError(f"option {text!r}: expected NAME=VALUE, such as steps=300")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def _loaded(path: Path, kind: type[Spec]) -> Spec:
    spec = load_spec(path)
    if not isinstance(spec, kind):
        raise BadInputError(f"{path}: this is the spec of another kind of job; expected a {kind.__name__}")
    return spec
