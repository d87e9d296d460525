"""The lineage graph: artifacts by id and the steps that produced them, merged from all sources."""

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
    """One execution of a step: its record in a run's folder, or its run in MLflow."""

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
        """The identifiers by which a user may refer to it."""
        return {self.run, self.mlflow_run, self.pipeline_run, self.kfp_run} - {""}


@dataclass
class Node:
    """An artifact; the same content may exist at several locations and be produced more than once."""

    id: str
    kind: str  # dataset, model, version, endpoint; "" if only known as a parent
    name: str = ""
    step: str = ""
    parents: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)  # folders and addresses
    facts: dict[str, list[str]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    @property
    def folders(self) -> list[Path]:
        """Its locations on this machine that still exist."""
        return [Path(place) for place in self.places if "://" not in place and Path(place).exists()]

    @property
    def short(self) -> str:
        """The id as shown to users: the first 12 digits of a hash."""
        return self.name if self.kind == "endpoint" else self.id if ":" in self.id else self.id[:12]

    @property
    def title(self) -> str:
        """One-line description for users."""
        if not self.kind:
            return f"{self.short} is unknown (not in this history)"
        step = "" if self.kind in ("version", "endpoint") else f" by {self.step or '?'}"
        name = f" ({self.name})" if self.name and self.kind != "endpoint" else ""
        data = "".join(f" at data revision {one[:12]}" for one in self.facts.get("data_revision", []))
        return f"{self.kind} {self.short}{step}{name}{data}"

    @property
    def provenance(self) -> dict[str, list[str]]:
        """What produced it: run, mlflow_run, kfp_run, code, image; the original execution before cached ones."""
        steps = sorted(self.steps, key=lambda step: (step.cached, step.run))
        produced_by = {
            name: [getattr(step, name) for step in steps if getattr(step, name)]
            for name in ("run", "mlflow_run", "kfp_run", "code", "image")
        }
        return {
            name: values
            for name in (*produced_by, *(fact for fact in self.facts if fact not in produced_by))
            if (values := list(dict.fromkeys([*self.facts.get(name, []), *produced_by.get(name, [])])))
        }


@dataclass
class Graph:
    """A part of the history: start nodes, visited nodes, and edges from parent to child."""

    start: list[str]
    nodes: dict[str, Node]
    edges: list[tuple[str, str]]
    notes: dict[str, str] = field(default_factory=dict)  # by node id: a remark to show with the node


class History:
    """Artifacts by id, filled by the sources (`local_source`, `mlflow_source`)."""

    def __init__(self, description: str):
        self.description = description  # of the sources, for messages
        self.nodes: dict[str, Node] = {}
        self.steps: dict[str, Step] = {}
        self.contents: dict[str, list[str]] = {}  # content hash of an output, card included → artifact ids

    def add(self, origin: Origin, place: str = "") -> Node:
        """Add an artifact, or merge it with what another source reported."""
        node = self.nodes.setdefault(origin.id, Node(origin.id, origin.kind))
        node.name = node.name or origin.name
        if origin.step and (
            not node.step or origin.id not in origin.parents
        ):  # a step that passed it through did not produce it
            node.step = origin.step
        node.parents += [parent for parent in dict.fromkeys(origin.parents) if parent and parent not in node.parents]
        if place and place not in node.places:
            node.places.append(place)
        for name, value in origin.facts.items():
            if value and value not in node.facts.get(name, []):
                node.facts.setdefault(name, []).append(value)
        return node

    def add_step(self, step: Step, contents: dict[str, list[str]]) -> None:
        """Add an execution of a step.

        Args:
            contents: content hash of each output → ids of the artifacts in it.
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
        """Artifact id → ids of the artifacts produced from it."""
        found: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for parent in node.parents:
                found.setdefault(parent, []).append(node.id)
        return found

    def ancestors(self, ids: Iterable[str]) -> Graph:
        """Return `ids` and all their ancestors, starting at those that are no ancestors of the others."""
        unique = list(dict.fromkeys(ids))
        parents = {parent for id in unique for parent in self.nodes[id].parents if parent != id}
        start = sorted(
            (id for id in unique if id not in parents), key=lambda id: _LAST_FIRST.index(self.nodes[id].kind)
        )
        return self._walk(start, lambda id: [(parent, id) for parent in self._node(id).parents])

    def descendants(self, ids: Iterable[str]) -> Graph:
        """Return `ids` and all their descendants, starting at those that do not descend from the others."""
        unique = list(dict.fromkeys(ids))
        start = [id for id in unique if not set(self.nodes[id].parents) & (set(unique) - {id})]
        return self._walk(start, lambda id: [(id, child) for child in self.children.get(id, [])])

    def _walk(self, start: list[str], edges_at: Callable[[str], list[tuple[str, str]]]) -> Graph:
        graph, frontier = Graph(start, {}, []), list(start)
        while frontier:  # breadth first; visited nodes are skipped, so a cycle ends
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

    def find_by_prefix(self, prefix: str) -> str | None:
        """Return the id that starts with `prefix`, or None.

        Raises:
            DataError: several ids match.
        """
        found = [id for id in self.nodes if id.startswith(prefix)]
        if len(found) > 1 and prefix not in found:
            raise ambiguous(prefix, found)
        return prefix if prefix in found else next(iter(found), None)


def ambiguous(prefix: str, found: list[Any]) -> DataError:
    """Return the error for a prefix that matches several ids."""
    return DataError(f"{prefix}: ambiguous, {len(found)} matches: {', '.join(sorted(found)[:3])}; give more digits")
