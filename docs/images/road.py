"""Draws ARCHITECTURE.md's road of a read as docs/images/road.svg: `make docs`."""

import re
import sys
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = Path(__file__).with_name("road.svg")

_WIDTH, _BOX_WIDTH, _LINE, _GAP, _LEFT, _RIGHT = 860, 370, 17, 34, 20, 470
_STYLE = """
text { font: 13px sans-serif; fill: #24292f } .title { font-weight: bold } .file { font: 12px monospace }
.client { fill: #eef6ee; stroke: #4c8c4a } .server { fill: #eaf1fb; stroke: #3b6fb6 }
.lane { font-size: 14px; fill: #57606a }
path { stroke: #57606a; fill: none; marker-end: url(#tip) }
"""

Step = tuple[str, list[str]]


def steps(text: str) -> list[Step]:
    """Title and files of each part of the road, in order."""
    road = text[text.index("## The road of a read") : text.index("`porestream call` (")]
    parts = re.split(r"^\*\*(.+)\*\*$", road, flags=re.MULTILINE)[1:]
    return [
        (title, list(dict.fromkeys(Path(name).name for name in re.findall(r"`([\w/]+\.py)`", body))))
        for title, body in zip(parts[::2], parts[1::2], strict=True)
    ]


def lines_of(files: list[str], width: int = 46) -> list[str]:
    """File names, as many a line as fit."""
    lines = [""]
    for name in files:
        if len(lines[-1]) + len(name) > width:
            lines.append("")
        lines[-1] += f"{name}  "
    return [line.strip() for line in lines]


def draw(road: list[Step]) -> str:
    """The picture: the client's parts on the left, the server's on the right, from top to bottom and back."""
    inner = [step for step in road if not step[0].startswith("client")]
    first, last = (step for step in road if step[0].startswith("client"))
    parts, y, boxes = list[str](), 50, list[tuple[int, int]]()
    for title, files in inner:
        lines = lines_of(files)
        height = 30 + _LINE * len(lines)
        boxes.append((y, height))
        parts += _box("server", _RIGHT, y, height, title, lines)
        y += height + _GAP
    for (top, height), (below, _) in pairwise(boxes):
        middle = _RIGHT + _BOX_WIDTH // 2
        parts.append(f'<path d="M{middle} {top + height} V{below - 4}"/>')
    for step, (top, height), out in ((first, boxes[0], True), (last, boxes[-1], False)):
        lines = lines_of(step[1])
        own = 30 + _LINE * len(lines)
        at = top if out else top + height - own
        parts += _box("client", _LEFT, at, own, step[0], lines)
        level, near, far = at + own // 2 if not out else top + 20, _LEFT + _BOX_WIDTH, _RIGHT
        parts.append(f'<path d="M{near} {level} H{far - 4}"/>' if out else f'<path d="M{far} {level} H{near + 4}"/>')
        parts.append(f'<text class="lane" x="{near + 18}" y="{level - 8}">{"signal" if out else "results"}</text>')
    height = y - _GAP + 20
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">'
        f"<title>The road of a read</title><style>{_STYLE}</style>"
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">'
        '<path d="M0 0 L6 3 L0 6" style="marker-end: none"/></marker></defs>'
        f'<text class="lane" x="{_LEFT}" y="30">at the client</text>'
        f'<text class="lane" x="{_RIGHT}" y="30">on the server</text>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _box(kind: str, x: int, y: int, height: int, title: str, lines: list[str]) -> list[str]:
    return [
        f'<rect class="{kind}" x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{height}" rx="6"/>',
        f'<text class="title" x="{x + 12}" y="{y + 20}">{escape(title)}</text>',
        *(
            f'<text class="file" x="{x + 12}" y="{y + 20 + _LINE * number}">{escape(line)}</text>'
            for number, line in enumerate(lines, 1)
        ),
    ]


if __name__ == "__main__":
    made = draw(steps((ROOT / "ARCHITECTURE.md").read_text()))
    if sys.argv[1:] == ["--check"]:
        sys.exit(made != TARGET.read_text())
    TARGET.write_text(made)
