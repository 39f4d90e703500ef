"""What is read from frozen features."""
