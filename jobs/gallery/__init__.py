"""Reports as single HTML files: pictures, scores and processes, with nothing fetched from anywhere."""

from jobs.gallery.demo import (
    BeforeAfter,
    ConceptPictures,
    DemoReport,
    Lineage,
    Phase,
    Together,
    write_demo_report,
)
from jobs.gallery.document import Document, write_document
from jobs.gallery.timeline import ProcessSpan

__all__ = [
    "BeforeAfter",
    "ConceptPictures",
    "DemoReport",
    "Document",
    "Lineage",
    "Phase",
    "ProcessSpan",
    "Together",
    "write_demo_report",
    "write_document",
]
