"""Draws the imports between the packages and between each package's rooms, in docs/inside/imports.md: `make docs`."""

import sys
from pathlib import Path

import grimp
import networkx

TARGET = Path(__file__).resolve().parent.parent / "inside" / "imports.md"
_PACKAGES = ("server", "models", "kernels", "client", "cli")
_INTRODUCTION = """# Imports

Made by `make docs`. An arrow means "imports". Arrows that follow from others are left out: if `start` imports `edge`
and `edge` imports `streams`, `start` may import `streams`. `make lint` fails on an import that runs up or in a circle
(`tool.importlinter` in pyproject.toml).
"""


def rooms(graph: grimp.ImportGraph, package: str) -> networkx.DiGraph:
    """Return which child of a package imports which; an edge says so."""
    drawn = networkx.DiGraph()
    children = sorted(graph.find_children(package))
    drawn.add_nodes_from(child.rpartition(".")[2] for child in children)
    for importer in children:
        for imported in children:
            if importer != imported and graph.direct_import_exists(
                importer=importer, imported=imported, as_packages=True
            ):
                drawn.add_edge(importer.rpartition(".")[2], imported.rpartition(".")[2])
    return drawn


def mermaid(drawn: networkx.DiGraph) -> str:
    """Write a graph without circles as a Mermaid diagram."""
    needed = networkx.transitive_reduction(drawn)
    lines = [f"    {node}_[{node}]" for node in sorted(drawn)]
    lines += [f"    {importer}_ --> {imported}_" for importer, imported in sorted(needed.edges)]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


def page() -> str:
    """Return the whole page."""
    graph = grimp.build_graph("porestream", cache_dir=None)
    # The emulator keeps compiled code where the models' folder is: the one exception in pyproject.toml.
    graph.remove_import(importer="porestream.kernels.emulator.emulator", imported="porestream.models.private_folder")
    parts = [_INTRODUCTION, f"## The packages\n\n{mermaid(rooms(graph, 'porestream'))}"]
    parts += [f"\n## {package}\n\n{mermaid(rooms(graph, f'porestream.{package}'))}" for package in _PACKAGES]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(TARGET.read_text() != page())
    TARGET.write_text(page())
