"""One run: its plan, its loop, what it logs and leaves."""
