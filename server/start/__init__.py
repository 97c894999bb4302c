"""Settings to a server that runs."""
