"""Decodes scores to bases on a GPU."""
