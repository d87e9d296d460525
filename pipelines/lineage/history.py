"""The history: artifacts by their ids, and the steps that made them, whichever source told of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmflow.artifacts.provenance import Origin
from vlmflow.errors import DataError

_LAST_FIRST = ("endpoint", "version", "model", "dataset")


@dataclass(kw_only=True)
class Step:
    """A step that ran: its record in a run's folder, or its run in MLflow."""

    label: str
    run: str = ""  # name of the run's folder
    mlflow_run: str = ""
    pipeline_run: str = ""  # MLflow's run of the whole pipeline
    kfp_run: str = ""
    code: str = ""  # git revision
    image: str = ""
    cached: bool = False
    inputs: list[str] = field(default_factory=list)  # content hashes
    made: list[str] = field(default_factory=list)  # ids

    @property
    def names(self) -> set[str]:
        """What a person may know it by."""
        return {self.run, self.mlflow_run, self.pipeline_run, self.kfp_run} - {""}


@dataclass
class Node:
    """An artifact; the same content may lie in several places and may have been made more than once."""

    id: str
    kind: str  # dataset, model, version, endpoint; "" for what is only known as a parent
    name: str = ""
    step: str = ""
    parents: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)  # folders and addresses
    facts: dict[str, list[str]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    @property
    def folders(self) -> list[Path]:
        """Its places on this machine that are still there."""
        return [Path(place) for place in self.places if "://" not in place and Path(place).exists()]

    @property
    def short(self) -> str:
        """Its id as a person writes it: 12 digits of a hash."""
        return self.name if self.kind == "endpoint" else self.id if ":" in self.id else self.id[:12]

    @property
    def title(self) -> str:
        """One line for a person."""
        if not self.kind:
            return f"{self.short} is not in this history"
        step = "" if self.kind in ("version", "endpoint") else f" by {self.step or '?'}"
        name = f" ({self.name})" if self.name and self.kind != "endpoint" else ""
        data = "".join(f" at data revision {one[:12]}" for one in self.facts.get("data_revision", []))
        return f"{self.kind} {self.short}{step}{name}{data}"

    @property
    def making(self) -> dict[str, list[str]]:
        """By what it was made: run, mlflow_run, kfp_run, code, image; those of its first making before the others."""
        steps = sorted(self.steps, key=lambda step: (step.cached, step.run))
        told = {
            name: [getattr(step, name) for step in steps if getattr(step, name)]
            for name in ("run", "mlflow_run", "kfp_run", "code", "image")
        }
        return {
            name: values
            for name in (*told, *(fact for fact in self.facts if fact not in told))
            if (values := list(dict.fromkeys([*self.facts.get(name, []), *told.get(name, [])])))
        }


@dataclass
class Graph:
    """A part of the history: where the walk began, what it met, and the edges from parent to child."""

    start: list[str]
    nodes: dict[str, Node]
    edges: list[tuple[str, str]]
    notes: dict[str, str] = field(default_factory=dict)  # by id: what is to be said beside the node


class History:
    """Artifacts by id; sources `add` to it what they know."""

    def __init__(self, place: str):
        self.place = place  # in words, for messages
        self.nodes: dict[str, Node] = {}
        self.steps: dict[str, Step] = {}
        self.contents: dict[str, list[str]] = {}  # hash of an output's whole content, its card too → ids

    def add(self, origin: Origin, place: str = "") -> Node:
        """Take what a source says of an artifact; what another said of the same one is kept beside it."""
        node = self.nodes.setdefault(origin.id, Node(origin.id, origin.kind))
        node.name = node.name or origin.name
        if origin.step and (not node.step or origin.id not in origin.parents):  # one that changed nothing made nothing
            node.step = origin.step
        node.parents += [parent for parent in dict.fromkeys(origin.parents) if parent and parent not in node.parents]
        if place and place not in node.places:
            node.places.append(place)
        for name, value in origin.facts.items():
            if value and value not in node.facts.get(name, []):
                node.facts.setdefault(name, []).append(value)
        return node

    def ran(self, step: Step, contents: dict[str, list[str]]) -> None:
        """Take a step.

        Args:
            contents: content hash of each output → ids of what lies in it.
        """
        known = self.steps.setdefault(step.mlflow_run or f"{step.run}/{step.label}", step)
        for name in ("run", "pipeline_run", "kfp_run", "code", "image"):
            setattr(known, name, getattr(known, name) or getattr(step, name))
        for content, ids in contents.items():
            held = self.contents.setdefault(content, [])
            held += [id for id in ids if id not in held]
            for id in ids:
                if id not in known.made:
                    known.made.append(id)
                if not any(step is known for step in self.nodes[id].steps):
                    self.nodes[id].steps.append(known)

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """Id → what was made from it."""
        found: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for parent in node.parents:
                found.setdefault(parent, []).append(node.id)
        return found

    def above(self, ids: Iterable[str]) -> Graph:
        """`ids` and everything that they were made from; it starts at those that the others were not made from."""
        held = list(dict.fromkeys(ids))
        fed = {parent for id in held for parent in self.nodes[id].parents if parent != id}
        start = sorted((id for id in held if id not in fed), key=lambda id: _LAST_FIRST.index(self.nodes[id].kind))
        return self._walk(start, lambda id: [(parent, id) for parent in self._node(id).parents])

    def below(self, ids: Iterable[str]) -> Graph:
        """`ids` and everything that was made from them; it starts at those that were made from none of the others."""
        held = list(dict.fromkeys(ids))
        start = [id for id in held if not set(self.nodes[id].parents) & (set(held) - {id})]
        return self._walk(start, lambda id: [(id, child) for child in self.children.get(id, [])])

    def _walk(self, start: list[str], edges_at: Callable[[str], list[tuple[str, str]]]) -> Graph:
        graph, frontier = Graph(start, {}, []), list(start)
        while frontier:  # in breadth; a card that names itself does not make it endless
            id = frontier.pop(0)
            if id in graph.nodes:
                continue
            graph.nodes[id] = self._node(id)
            edges = edges_at(id)
            graph.edges += edges
            frontier += [other for edge in edges for other in edge if other != id]
        return graph

    def _node(self, id: str) -> Node:
        return self.nodes.get(id) or Node(id, "")

    def beginning(self, prefix: str) -> str | None:
        """The id that begins so, or None.

        Raises:
            DataError: several do.
        """
        found = [id for id in self.nodes if id.startswith(prefix)]
        if len(found) > 1 and prefix not in found:
            raise ambiguous(prefix, found)
        return prefix if prefix in found else next(iter(found), None)


def ambiguous(prefix: str, found: list[Any]) -> DataError:
    """Several things begin so."""
    return DataError(f"{prefix}: {len(found)} begin so: {', '.join(sorted(found)[:3])}; give more of it")
