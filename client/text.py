"""Words for people, and text of files and servers where it must do no harm."""

import re
from functools import lru_cache

_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # the wide ones, too


@lru_cache(maxsize=256)  # few texts, each in very many records
def printable(text: str) -> str:
    """What a Z tag or a header's field may hold: printable ASCII and space (SAM specification, section 1.5)."""
    return re.sub("[^ -~]", "_", text)


@lru_cache(maxsize=256)
def cell(text: str) -> str:
    """A table's cell of text that somebody else has written.

    It has no tab or line end, and no other character that does not print. Spreadsheets would compute what begins as a
    formula does, and behind a quotation mark readers would look for the next one: such text has an apostrophe before
    it (OWASP, "CSV injection"). What instruments write begins otherwise.
    """
    clean = "".join(character if character.isprintable() else "_" for character in text)
    return f"'{clean}" if clean.lstrip(" ").startswith((*_FORMULA, '"')) else clean


def shown(text: str, most_characters: int = 60) -> str:
    """What a file or a server says, as it may stand in a message: of what is long the beginning."""
    return text if len(text) <= most_characters else f"{text[:most_characters]}..."


def counted(number: int, what: str) -> str:
    """A number and what there are so many of: 1 read, 2,000 reads."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
