"""ED-LoRA on a base model: low-rank updates, layer-wise words, and how both are put to work."""
