"""Images and texts to batches."""
