"""Bases to alignments: references, indexes and aligners behind one protocol."""
