"""Kinds of networks: their descriptions, tensors and modules."""
