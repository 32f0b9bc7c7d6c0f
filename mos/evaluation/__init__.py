"""Evaluation: metrics on CLIP features, the attribute probe, prompt suites, and the identity claim."""
