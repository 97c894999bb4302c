"""The classifier of differences between our records and minimap2's."""

from collections import Counter
from dataclasses import replace

import pytest
from compare_minimap2 import Record, classify, compare

BASE = Record(
    name="r",
    flag=0,
    contig="c1",
    start=100,
    end=200,
    mapq=60,
    cigar="100M",
    tags=(("NM", 1), ("AS", 180), ("de", 0.01), ("MD", "50A49")),
)
SECOND = replace(BASE, flag=0x100, contig="c2", mapq=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([BASE, SECOND], [SECOND, BASE], {"equal": 2}),
        ([BASE], [replace(BASE, tags=(*BASE.tags[:2], ("de", 0.01004), BASE.tags[3]))], {"equal": 1}),
        ([BASE], [replace(BASE, tags=(*BASE.tags[:2], ("de", 0.0102), BASE.tags[3]))], {"tags": 1}),
        ([BASE], [replace(BASE, tags=(("NM", 2), *BASE.tags[1:]))], {"tags": 1}),
        ([BASE], [replace(BASE, mapq=59)], {"MAPQ": 1}),
        ([BASE, SECOND], [replace(BASE, flag=0x100, mapq=0), replace(SECOND, flag=0, mapq=60)], {"role": 2}),
        ([BASE], [replace(BASE, cigar="50M1D1I49M")], {"tie": 1}),
        ([BASE], [replace(BASE, start=101, cigar="1S99M")], {"tie": 1}),
        ([BASE, SECOND], [BASE], {"equal": 1, "secondary": 1}),
        ([BASE], [BASE, SECOND], {"equal": 1, "secondary": 1}),
        ([BASE], [replace(BASE, cigar="90M10S", tags=(("AS", 170),))], {"unclassified": 2}),
        ([BASE], [replace(BASE, start=900, end=1000)], {"unclassified": 2}),
        ([BASE], [replace(BASE, flag=16)], {"unclassified": 2}),
        ([BASE], [replace(BASE, flag=4, contig="*", cigar="*", start=-1, end=0, tags=())], {"unclassified": 2}),
        ([BASE], [], {"unclassified": 1}),
        ([], [replace(BASE, flag=0x800)], {"unclassified": 1}),
    ],
)
def test_each_difference_has_its_class(ours: list[Record], theirs: list[Record], expected: dict[str, int]) -> None:
    assert classify(ours, theirs) == Counter(expected)


def test_reads_are_compared_with_themselves() -> None:
    other = replace(BASE, name="s")
    assert compare([BASE, other], [other, BASE]) == Counter(equal=2)
    assert compare([BASE], [other]) == Counter(unclassified=2)
