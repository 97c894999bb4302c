"""Finds, reads and checks models' files."""
