"""Reading what must not be misread: a store's answer may come damaged, and some answers are never asked for again."""

from registry.documents import MAX_DOCUMENT_BYTES, sha256_hex
from registry.errors import StoreBusyError
from registry.objects.protocol import ObjectStore

MAX_READS = 5


def read_settled(store: ObjectStore, key: str, known_sha256: str = "") -> bytes:
    """Read a document until two answers in a row are equal, or one has the digest that is known.

    For bytes that something lasting follows from: what an indexer remembers as first seen, whether a run was published
    before, which files nobody names any more. Of one that is too long to be a document, only so much is read.

    Raises:
        ObjectMissingError: If there is none.
        StoreBusyError: If no two answers are alike.
    """
    data = store.get(key, at_most=MAX_DOCUMENT_BYTES + 1)
    for _ in range(MAX_READS - 1):
        if known_sha256 and sha256_hex(data) == known_sha256:
            return data
        again = store.get(key, at_most=MAX_DOCUMENT_BYTES + 1)
        if again == data:
            return data
        data = again
    raise StoreBusyError(f"{store.url}/{key}: {MAX_READS} answers, each another; try again")
