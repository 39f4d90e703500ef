"""Every setting of a run, and the recipes that are given."""
