"""From complete reads to results: fair scheduling, full batches, workers."""
