"""The private place of a run in a registry, opened anew wherever it is needed."""

from dataclasses import dataclass

from cluster.checkpoint import RunPlace


@dataclass(frozen=True)
class RegistryPlaces:
    """Opens runs' places in the registry at `url`; small enough to travel to every worker.

    Credentials for S3 come from each machine's own environment, never with the request.
    """

    url: str

    def __call__(self, run_id: str) -> RunPlace:
        """The private place of `run_id`."""
        from registry.objects import open_store
        from registry.runs import ObjectPrefix

        return ObjectPrefix.of_run(open_store(self.url), run_id)
