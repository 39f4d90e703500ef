"""Encoders of any origin."""
