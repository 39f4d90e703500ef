"""What is counted of predictions."""
