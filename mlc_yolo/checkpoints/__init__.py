"""Checkpoint files: read as data, written whole, marked with what they hold."""
