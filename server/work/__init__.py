"""From complete reads to results: fair order, full batches, workers."""
