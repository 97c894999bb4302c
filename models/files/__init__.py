"""Models' files: found, read and checked; the networks that they describe."""
