"""Object stores: a local directory and S3, with the one primitive the registry needs, create-if-absent."""

from registry.objects.location import open_store
from registry.objects.protocol import ObjectStore

__all__ = ["ObjectStore", "open_store"]
