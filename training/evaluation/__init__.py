"""Evaluation: models of any origin, cached features, and the protocols in `training.evaluation.protocols`."""
