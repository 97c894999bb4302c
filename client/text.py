"""Format text for people, and make text from files and servers harmless."""

import re
from functools import lru_cache

_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # full-width forms, too


@lru_cache(maxsize=256)  # few texts, each in many records
def printable(text: str) -> str:
    """Make text fit a Z tag or header field: printable ASCII and space (SAM specification, section 1.5)."""
    return re.sub("[^ -~]", "_", text)


@lru_cache(maxsize=256)
def cell(text: str) -> str:
    """Make untrusted text safe for a table's cell.

    Replace tabs, line ends and other characters that do not print. Put an apostrophe before text that begins like a
    formula, which spreadsheets would compute, or with a quotation mark, which readers would try to match (OWASP, "CSV
    injection"). What instruments write begins otherwise.
    """
    clean = "".join(character if character.isprintable() else "_" for character in text)
    return f"'{clean}" if clean.lstrip(" ").startswith((*_FORMULA, '"')) else clean


def one_line(text: str) -> str:
    """Put text for a header field on one line, without tabs and other characters that do not print."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def shown(text: str, most_characters: int = 60) -> str:
    """Shorten text from a file or server for a message."""
    return text if len(text) <= most_characters else f"{text[:most_characters]}..."


def counted(number: int, what: str) -> str:
    """Return a number and its noun: 1 read, 2,000 reads."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
