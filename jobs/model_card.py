"""The model card that goes with an export: YAML front matter for model hubs, then what people need to know."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TAGS = ("text-to-image", "diffusers", "lora", "ed-lora", "mix-of-show")
_FAMILY_TAGS = {"sd1": "stable-diffusion", "sd2": "stable-diffusion", "sdxl": "stable-diffusion-xl"}


@dataclass(frozen=True, kw_only=True)
class CardContents:
    """Everything a model card says.

    Args:
        title: one line.
        description: a paragraph, may be empty.
        base_name: hub id or name of the base model.
        family: sd1, sd2 or sdxl.
        licence: lower-case licence name, empty if unknown.
        credit: whom to name.
        words: what people type, one a concept.
        tags: words to find it by, beside the usual ones.
        instance_prompt: a prompt that shows the concept.
        previews: (file name beside the card, prompt).
        usage: how to use the files.
        losses: lines saying what the format could not hold.
        sources: ``owner/name@version`` of what was fused.
        recipe: training options.
        tensor_hash: sha256 of the weights' data, may be empty.
    """

    title: str
    description: str = ""
    base_name: str
    family: str
    licence: str = ""
    credit: Sequence[str] = ()
    words: Sequence[str] = ()
    tags: Sequence[str] = ()
    instance_prompt: str = ""
    previews: Sequence[tuple[str, str]] = ()
    usage: str = ""
    losses: Sequence[str] = ()
    sources: Sequence[str] = ()
    recipe: Mapping[str, str]
    tensor_hash: str = ""


def model_card(contents: CardContents) -> str:
    """Write the card as Markdown with YAML front matter."""
    sections = (
        _front_matter(contents),
        f"# {_plain(contents.title)}",
        _plain(contents.description),
        "\n".join(f"![{_plain(prompt)}]({name})" for name, prompt in contents.previews),
        _words_section(contents),
        f"## Use\n\n```\n{contents.usage}\n```" if contents.usage else "",
        _list("What this format could not hold", contents.losses),
        _list("Fused from", contents.sources),
        _recipe_section(contents),
        _licence_section(contents),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(contents: CardContents) -> str:
    tags = [*_TAGS, _FAMILY_TAGS[contents.family], *contents.tags]
    lines = ["---"]
    if contents.licence:
        lines.append(
            f"license: {_quoted(contents.licence if contents.licence not in ('custom', 'mixed') else 'other')}"
        )
    lines += [f"base_model: {_quoted(contents.base_name)}", "base_model_relation: adapter", "library_name: diffusers"]
    lines += ["tags:", *(f"- {_quoted(tag)}" for tag in dict.fromkeys(tags))]
    if contents.instance_prompt:
        lines.append(f"instance_prompt: {_quoted(contents.instance_prompt)}")
    if contents.previews:
        lines.append("widget:")
        for name, prompt in contents.previews:
            lines += [f"- text: {_quoted(prompt)}", "  output:", f"    url: {_quoted(name)}"]
    return "\n".join([*lines, "---"])


def _words_section(contents: CardContents) -> str:
    if not contents.words:
        return ""
    written = ", ".join(f"`{word}`" for word in contents.words)
    return f"Write {written} in a prompt, for example `{contents.instance_prompt}`. Base model: {contents.base_name}."


def _recipe_section(contents: CardContents) -> str:
    if not contents.recipe and not contents.tensor_hash:
        return ""
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in sorted(contents.recipe.items())]
    hashed = f"\n\nsha256 of the weights' data: `{contents.tensor_hash}`" if contents.tensor_hash else ""
    table = "\n".join(["| option | value |", "|---|---|", *rows]) if rows else ""
    return f"## Recipe\n\n{table}{hashed}"


def _licence_section(contents: CardContents) -> str:
    if not contents.licence:
        return "## Licence\n\nNot stated. Ask the owner before using it."
    credit = f" Credit: {'; '.join(map(_plain, contents.credit))}." if contents.credit else ""
    return f"## Licence\n\n{contents.licence}.{credit}"


def _list(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


def _quoted(text: str) -> str:
    """A JSON string is a YAML string."""
    return json.dumps(text, ensure_ascii=True)


def _plain(text: str) -> str:
    """Keep a stranger's text from becoming HTML or a link."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("[", "&#91;").replace("]", "&#93;").replace("\n", " ")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")
