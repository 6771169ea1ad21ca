"""Tests of the ported detectors: what torchvision gives, loading, configuration, heads."""
