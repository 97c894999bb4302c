"""Aligns reads, with minimap2 or with kernels that do the same on a GPU."""
