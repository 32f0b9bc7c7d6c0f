"""The shared shelf: objects, manifests, catalogue and trust."""
