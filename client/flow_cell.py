"""Where a flow cell's channels lie, so that it can be divided among conditions as readfish divides it.

Layouts: 126 channels (Flongle), 512 (MinION), 3,000 (PromethION); facts checked against readfish 2024.3.0's tables by
`make compare-readfish`.
"""

import functools

import numpy as np
import numpy.typing as npt

CHANNELS = {126: (10, 13), 512: (16, 32), 3000: (25, 120)}
"""Rows and columns by number of channels."""


@functools.cache
def layout(channels: int) -> npt.NDArray[np.int32]:
    """Return the channel at each place, (rows, columns), the top row first; 0: there is none.

    Raises
    ------
    ValueError
        No flow cell has so many channels.
    """
    if channels not in CHANNELS:
        known = ", ".join(map(str, CHANNELS))
        raise ValueError(f"no layout is known of a flow cell with {channels} channels; there are ones with {known}")
    places_RC = np.zeros(CHANNELS[channels], np.int32)
    for channel in range(1, channels + 1):
        row, column = _place(channel - 1, channels)
        places_RC[row, column] = channel
    places_RC.flags.writeable = False  # it is the same for all
    return places_RC[::-1]


def _place(number: int, channels: int) -> tuple[int, int]:
    """Return row and column of a channel, counted from 0."""
    if channels == 3000:  # twelve blocks of ten columns
        block, inside = divmod(number, 250)
        return inside // 10, 10 * block + inside % 10
    if channels == 512:  # eight blocks of four columns, each from the edges to the middle, the upper half first
        block, inside = divmod(number, 64)
        half, inside = divmod(inside, 32)
        last_column = 31 if block == 0 else 4 * block - 1
        row = inside % 8
        return (15 - row if half else row), last_column - inside // 8
    for row in range(9, -1, -1):  # rows of 13, but the two at each edge have 12
        width = 12 if row in (0, 1, 8, 9) else 13
        if number < width:
            return row, number
        number -= width
    raise AssertionError(number)


def divide(channels: int, parts: int, axis: int = 1) -> list[list[int]]:
    """Divide the channels into equal parts, by columns (axis 1) or rows (axis 0).

    Raises
    ------
    ValueError
        The parts would not be equal.
    """
    places_RC = layout(channels)
    if type(axis) is not int or axis not in (0, 1):  # not true, not 1.0
        raise ValueError(f"split_axis is {axis!r}; it must be 0 (rows) or 1 (columns)")
    if parts < 1 or places_RC.shape[axis] % parts:
        along = ("rows", "columns")[axis]
        raise ValueError(
            f"{parts} regions cannot share the {places_RC.shape[axis]} {along} of {channels} channels equally"
        )
    return [[int(channel) for channel in part.flat if channel] for part in np.split(places_RC, parts, axis=axis)]
