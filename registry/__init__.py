"""The shared shelf: owners publish signed concepts, an indexer lists them, anyone verifies what they take."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.client import Details, Registry
    from registry.home import Home
    from registry.keys import OwnerKey
    from registry.licence import Licence, Person
    from registry.resolving import Resolved
    from registry.row import Row, State
    from registry.search import Query

__all__ = ["Details", "Home", "Licence", "OwnerKey", "Person", "Query", "Registry", "Resolved", "Row", "State"]

_HOMES = {
    "Details": "registry.client",
    "Home": "registry.home",
    "Licence": "registry.licence",
    "OwnerKey": "registry.keys",
    "Person": "registry.licence",
    "Query": "registry.search",
    "Registry": "registry.client",
    "Resolved": "registry.resolving",
    "Row": "registry.row",
    "State": "registry.row",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import registry` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
