"""Words for people."""


def counted(number: int, what: str) -> str:
    """A number and what there are so many of: 1 read, 2,000 reads."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
