"""Computes networks' passes between matrix products on a GPU."""
