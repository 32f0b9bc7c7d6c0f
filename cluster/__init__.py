"""The only importer of Ray: actors, placement, checkpoints, progress and submission."""
