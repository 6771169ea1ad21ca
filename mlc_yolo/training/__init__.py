"""Training: trainer, criteria, exact resume, durable saving."""
