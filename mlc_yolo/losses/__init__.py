"""Losses as pure functions of head outputs and an assignment."""
