"""The parts of the report: what is measured, and the page that shows it."""
