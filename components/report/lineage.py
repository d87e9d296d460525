"""Layout of the lineage graph, from the raw pairs to the registered version."""

from dataclasses import dataclass, field

from components.report.artifacts import RunArtifacts
from components.report.formatting import label

WIDTH, HEIGHT, GAP_X, GAP_Y = 162, 54, 44, 26  # px
TIP = 5  # px between the end of an arrow and its node


@dataclass
class Node:
    """A dataset, a checkpoint or the version; `row` and `column` are positions on a grid."""

    hash: str
    title: str
    note: str
    kind: str
    column: int
    parents: list[str] = field(default_factory=list)
    row: int = 0

    @property
    def x(self) -> int:
        """Left side, px."""
        return self.column * (WIDTH + GAP_X) + 2

    @property
    def y(self) -> int:
        """Top, px."""
        return self.row * (HEIGHT + GAP_Y) + 2


@dataclass
class Graph:
    """Nodes in drawing order, arrows as SVG paths, and the total size in px."""

    nodes: list[Node]
    arrows: list[str]
    width: int
    height: int
    node_width: int = WIDTH
    node_height: int = HEIGHT


def graph(run: RunArtifacts) -> Graph:
    """Place each artifact below its parents. A checkpoint passed on unchanged by a skipped stage appears once."""
    nodes: dict[str, Node] = {}
    for name, data in run.datasets.items():
        if len(data):
            nodes[data.hash] = Node(data.hash, label(name), f"{len(data):,} rows", "data", 0, data.card.parents)
    for stage in run.trained:
        parents = [*filter(None, [stage.card.get("parent")]), *(stage.card.get("datasets") or [])]
        column, family = 2 if stage.name == "control" else 1, stage.card.get("family", "")
        nodes.setdefault(stage.hash, Node(stage.hash, label(stage.name), family, "model", column, parents))
    if run.version:
        source = run.version.get("model_hash") or run.final.hash
        title = f"{run.version.get('name', 'model')} version {run.version.get('version', '?')}"
        column = nodes[source].column if source in nodes else 1
        nodes["version"] = Node(source, title, run.version.get("alias", ""), "version", column, [source])
    for node in nodes.values():
        node.parents = [parent for parent in node.parents if parent in nodes]
    for _ in nodes:  # longest path from a root; as many rounds as nodes always suffice
        for node in nodes.values():
            node.row = max([0, *(nodes[parent].row + 1 for parent in node.parents)])
    arrows = [_arrow(nodes[parent], node) for node in nodes.values() for parent in node.parents]
    width = max(node.x for node in nodes.values()) + WIDTH + 2
    return Graph(list(nodes.values()), arrows, width, max(node.y for node in nodes.values()) + HEIGHT + 2)


def _arrow(start: Node, end: Node) -> str:
    """SVG path from one node to another: down, sideways, or past a neighbour and down."""
    centre = WIDTH / 2
    if start.column == end.column or (abs(start.column - end.column) == 1 and start.kind == end.kind):
        x0, y0, x1, y1 = start.x + centre, start.y + HEIGHT, end.x + centre, end.y - TIP
        middle = (y0 + y1) / 2
        return f"M{x0},{y0} C{x0},{middle} {x1},{middle} {x1},{y1}"
    right = end.column > start.column
    # Arrows leave below the middle and arrive above it, so that two arrows do not overlap.
    x0, y0 = (start.x + WIDTH if right else start.x), start.y + 0.7 * HEIGHT
    if abs(start.column - end.column) > 1:
        x1, y1 = end.x + centre, end.y - TIP
        return f"M{x0},{y0} C{x1 - centre},{y0} {x1},{y0} {x1},{y1}"
    x1, y1 = (end.x - TIP if right else end.x + WIDTH + TIP), end.y + 0.35 * HEIGHT
    middle = (x0 + x1) / 2
    return f"M{x0},{y0} C{middle},{y0} {middle},{y1} {x1},{y1}"
