"""The formats other tools use for LoRAs and words: reading them, writing them, and saying what was lost."""
