"""Studies: what one choice changes, all else equal."""
