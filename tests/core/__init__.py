"""Tests of the pure core: geometry, assigners, losses, options."""
