"""Checkpoint files: reading them as data, writing them whole, marking their content."""
