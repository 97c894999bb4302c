"""A stream's state: credit, memory, reads, results, books."""
