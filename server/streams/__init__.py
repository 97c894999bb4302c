"""What a stream has: credit, memory, reads, results, books."""
