"""Worlds in which a policy acts."""
