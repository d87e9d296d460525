"""Render the lineage graph as a text tree, and as JSON."""

import json
import os
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from pipelines.lineage.history import Graph, Node

_LABELS = {"run": "run", "mlflow_run": "MLflow", "kfp_run": "KFP", "code": "code", "image": "image"}


def content(graph: Graph) -> dict[str, Any]:
    """Return the graph as JSON values: start, nodes by id, and edges from parent to child."""
    nodes = {}
    for id, node in graph.nodes.items():
        nodes[id] = {
            "title": node.title,
            "kind": node.kind,
            "name": node.name,
            "step": node.step,
            "locations": node.places,
            "provenance": node.provenance,
            **({"note": graph.notes[id]} if id in graph.notes else {}),
            **({"ledger": counts} if (counts := ledger(node)) else {}),
        }
    return {"start": graph.start, "nodes": nodes, "edges": graph.edges}


def tree(title: str, graph: Graph, up: bool) -> Tree:
    """Return the graph as a tree from its start nodes, up to the parents or down to the children.

    A node that is reached again is named without repeating its subtree.
    """
    following: dict[str, list[str]] = {}
    for parent, child in graph.edges:
        here, there = (child, parent) if up else (parent, child)
        if there not in following.setdefault(here, []):
            following[here].append(there)
    root, shown = Tree(Text(title)), set[str]()

    def grow(id: str, branch: Tree) -> None:
        node = graph.nodes[id]
        if id in shown:
            again = " (above)" if following.get(id) else ""
            branch.add(Text(f"{node.title}{again}"))
            return
        shown.add(id)
        twig = branch.add(_label(node, graph.notes.get(id, "")))
        for other in following.get(id, []):
            if other in graph.nodes:
                grow(other, twig)

    for id in graph.start:
        grow(id, root)
    return root


def _label(node: Node, note: str) -> Text:
    label = Text(node.title + (f": {note}" if note else ""))  # Text, not str: brackets in a path are rich markup
    if counts := ledger(node):
        label.append(f"\nledger: {counts['rows_in']} in, {counts['kept']} kept")
    more = f" and {len(node.places) - 1} more" if len(node.places) > 1 else ""
    places = [f"{_format_location(node.places[0], node)}{more}"] if node.places else []
    provenance = {
        name: values[0] for name, values in node.provenance.items() if not (places and values[0] in places[0])
    }
    made = [f"{word} {provenance[name]}" for name, word in _LABELS.items() if name in provenance]
    for line in (places, made):
        if line:
            label.append("\n" + " · ".join(line), style="dim")
    return label


def _format_location(place: str, node: Node) -> str:
    """Return the location relative to the current folder, by the step's label instead of KFP's task name."""
    path = Path(place)
    for step in node.steps:
        if step.run in path.parts:
            run = Path(*path.parts[: path.parts.index(step.run) + 1])
            path = link if (link := run / step.label / path.name).exists() else path
    if "://" in place:
        return place
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def ledger(node: Node) -> dict[str, Any] | None:
    """Return the summary of the ledger written with a curated dataset, or None."""
    if node.kind != "dataset" or node.step != "curate":
        return None
    places = (folder.parent / "ledger" / "summary.json" for folder in node.folders)
    found = next((place for place in places if place.is_file()), None)
    return json.loads(found.read_text(encoding="utf-8")) if found else None
