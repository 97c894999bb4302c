"""Text for a terminal."""

_MOST_CHARACTERS = 2000


def escaped(text: str) -> str:
    """No control characters: a file's name, or what stands in a file, must not steer the terminal, nor fill it.

    Of what is very long the beginning is left, and the end, for there the way out is.
    """
    if (left_out := len(text) - _MOST_CHARACTERS) > 0:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]} ... ({left_out:,} characters) ... {text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
