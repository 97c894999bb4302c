"""Bases to alignments: minimap2, and the kernels that do the same on a GPU."""
