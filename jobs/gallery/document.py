"""A report as data: sections of blocks, rendered to one HTML file that fetches nothing."""

import base64
import html
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture with the text that stands for it where it cannot be seen."""

    image: "Image.Image"
    alt: str
    caption: str = ""

    @property
    def data_uri(self) -> str:
        """The picture as a PNG inside the page itself."""
        buffer = io.BytesIO()
        self.image.convert("RGB").save(buffer, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Pictures in labelled rows and columns; a missing picture is None."""

    rows: Sequence[tuple[str, Sequence[Picture | None]]]
    columns: Sequence[str] = ()
    note: str = ""
    size_px: int = 96
    kind: str = "grid"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first column is text; columns named in `numeric` are set flush right.

    A cell is a text, or a text with a smaller one under it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence["str | tuple[str, str]"]]
    numeric: Sequence[int] = ()
    groups: Mapping[int, str] = field(default_factory=dict)
    emphasis: Sequence[int] = ()
    emphasised_column: int | None = None
    note: str = ""
    kind: str = "table"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One or more SVG drawings side by side; each is (title, markup) made by this package."""

    drawings: Sequence[tuple[str, str]]
    note: str = ""
    wide: bool = False
    kind: str = "drawing"


@dataclass(frozen=True, kw_only=True)
class Statements:
    """Claims with a verdict: holds, does not hold, or cannot be told, each with its evidence."""

    rows: Sequence[tuple[bool | None, str, str]]
    kind: str = "statements"


@dataclass(frozen=True, kw_only=True)
class Prose:
    """Plain paragraphs."""

    paragraphs: Sequence[str]
    kind: str = "prose"


Block = Grid | Table | Drawing | Statements | Prose


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled part of the page with one sentence that says what is seen."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""

    @property
    def anchor(self) -> str:
        """The title as a fragment name."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole page.

    Attributes:
        title: The page's heading.
        subtitle: One sentence under it.
        tiles: Headline figures as (value, what it is).
        sections: The parts, in order.
        footer: Lines set small at the end (command, versions, machine).
    """

    title: str
    subtitle: str = ""
    tiles: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()
    footer: Sequence[str] = ()


def render_document(document: Document) -> str:
    """The page as one HTML string; every text is escaped, pictures and styles are inside it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    sections = [section for section in document.sections if section.blocks]
    return environment.get_template("page.html").render(document=document, sections=sections, style=style)


def write_document(document: Document, path: Path) -> Path:
    """Write the page whole or not at all, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(render_document(document))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def escape(text: object) -> str:
    """Text made safe for SVG and HTML."""
    return html.escape(str(text), quote=True)
