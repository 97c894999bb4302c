"""The `porestream` command: thin, with lazy imports."""
