"""Text for a terminal."""


def escaped(text: str) -> str:
    """No control characters: a file's name, or what stands in a file, must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
