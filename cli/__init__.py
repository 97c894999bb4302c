"""The `porestream` command: a thin layer with lazy imports."""
