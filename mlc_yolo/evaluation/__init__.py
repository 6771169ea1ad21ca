"""Validation and prediction: from a model to detections, metrics and pictures."""
