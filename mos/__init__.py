"""The method: ED-LoRA training, gradient fusion, regional sampling and their measures."""
