"""A part of the history as text for a person, and as mappings for a program."""

import json
from typing import Any

from rich.text import Text
from rich.tree import Tree

from pipelines.lineage.history import Graph, Node

_SAID = {"run": "run", "mlflow_run": "MLflow", "kfp_run": "KFP", "code": "code", "image": "image"}


def content(graph: Graph) -> dict[str, Any]:
    """The graph as JSON takes it: start, nodes by id, and edges from parent to child."""
    nodes = {}
    for id, node in graph.nodes.items():
        nodes[id] = {
            "title": node.title,
            "kind": node.kind,
            "name": node.name,
            "step": node.step,
            "places": node.places,
            "made": node.making,
            **({"note": graph.notes[id]} if id in graph.notes else {}),
            **({"ledger": counts} if (counts := ledger(node)) else {}),
        }
    return {"start": graph.start, "nodes": nodes, "edges": graph.edges}


def tree(title: str, graph: Graph, up: bool) -> Tree:
    """The graph as a tree from its start, up to the parents or down to the children.

    What has been shown with all that follows is named once more, and not repeated.
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
    label = Text(node.title + (f": {note}" if note else ""))  # Text: a path may hold brackets, rich's markup
    if counts := ledger(node):
        label.append(f"\nledger: {counts['rows_in']} in, {counts['kept']} kept")
    more = f" and {len(node.places) - 1} more" if len(node.places) > 1 else ""
    places = [f"{node.places[0]}{more}"] if node.places else []
    made = [f"{word} {_brief(name, node.making[name][0])}" for name, word in _SAID.items() if name in node.making]
    for line in (places, made):
        if line:
            label.append("\n" + " · ".join(line), style="dim")
    return label


def _brief(name: str, value: str) -> str:
    return value[:21] if name == "code" else value


def ledger(node: Node) -> dict[str, Any] | None:
    """The summary of the ledger that was written with a curated dataset."""
    if node.kind != "dataset" or node.step != "curate":
        return None
    places = (folder.parent / "ledger" / "summary.json" for folder in node.folders)
    found = next((place for place in places if place.is_file()), None)
    return json.loads(found.read_text(encoding="utf-8")) if found else None
