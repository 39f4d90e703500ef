"""From videos' frames to batches: stores, clips, views, colours."""
