"""Where reads come from."""
