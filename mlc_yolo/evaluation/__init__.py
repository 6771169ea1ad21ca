"""What validation and prediction make of a model: detections, metrics, pictures."""
