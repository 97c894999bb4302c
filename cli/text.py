"""Make text safe for a terminal."""

_MOST_CHARACTERS = 2000


def escaped(text: str) -> str:
    """Escape control characters and shorten: file names and contents must not control the terminal, nor fill it.

    Keep the beginning and the end of very long text, as the end says the way out.
    """
    if (left_out := len(text) - _MOST_CHARACTERS) > 0:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]} ... ({left_out:,} characters) ... {text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
