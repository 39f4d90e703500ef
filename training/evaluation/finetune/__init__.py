"""Fine-tuning for dense prediction: the pyramid of a vision transformer, heads on it, and how they are trained."""
