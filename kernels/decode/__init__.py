"""Scores to bases on a GPU."""
