"""Computes LSTMs' states on a GPU."""
