"""Results side by side: intervals, comparisons, pictures."""
