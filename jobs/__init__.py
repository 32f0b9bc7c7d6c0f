"""What a person asks for: concepts, fusions, samples, evaluations, and the mos command."""
