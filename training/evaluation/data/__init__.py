"""Labelled pictures and videos as they lie on a disk."""
