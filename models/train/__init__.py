"""Trains the project's own model: data, loss, trainer, evaluation, export."""
