"""Releases: weights with a card of which no number is typed by hand."""
