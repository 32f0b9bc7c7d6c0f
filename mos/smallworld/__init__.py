"""The embedded small world: a renderer, the base trained on it, its scorer and its probe."""
