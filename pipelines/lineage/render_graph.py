"""Draw the lineage graph: data on the left, endpoints on the right, one colour for each kind.

Layers, barycentre ordering and dummy nodes for long edges follow Sugiyama et al. 1981,
"Methods for Visual Understanding of Hierarchical System Structures".
"""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean

from pipelines.lineage.history import Graph, Node
from vlmflow.errors import DataError

WIDTH, HEIGHT, GAP_X, GAP_Y = 108.0, 44.0, 32.0, 14.0  # points
POINT = 14.0  # height reserved for an edge that passes a layer
MARGIN, LEGEND = 16.0, 26.0
SWEEPS = 12
COLOURS = {  # border and fill
    "dataset": ("#2563ab", "#e3eefa"),
    "model": ("#b45f06", "#fdeedd"),
    "version": ("#38761d", "#e6f3df"),
    "endpoint": ("#7a2f8f", "#f5e6f9"),
    "": ("#888888", "#f2f2f2"),
}
ENDINGS = (".svg", ".png", ".pdf")


@dataclass(eq=False)
class LayoutNode:
    """A node of the drawing: an artifact, or a dummy node of a long edge."""

    layer: int
    height: float
    before: list["LayoutNode"] = field(default_factory=list)
    after: list["LayoutNode"] = field(default_factory=list)
    y: float = 0.0  # of its centre

    @property
    def x(self) -> float:
        """Left edge, in points."""
        return MARGIN + self.layer * (WIDTH + GAP_X)


def draw(graph: Graph, file: Path) -> None:
    """Draw the graph into `file`, a .svg, .png or .pdf.

    Raises:
        DataError: another file type, or the folder does not exist.
    """
    from matplotlib.figure import Figure

    if file.suffix.lower() not in ENDINGS or not file.resolve().parent.is_dir():
        raise DataError(f"--graph {file}: write a {', '.join(ENDINGS)} file in an existing folder")
    spots, routes = layout(graph)
    width = MARGIN + max(spot.x for spot in spots.values()) + WIDTH
    points = [spot for route in routes for spot in route] + [*spots.values()]
    top = min(spot.y - spot.height / 2 for spot in points) - MARGIN - LEGEND
    bottom = max(spot.y + spot.height / 2 for spot in points) + MARGIN
    width = max(width, 4 * (WIDTH - 20) + MARGIN)
    figure = Figure(figsize=(width / 72, (bottom - top) / 72))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(bottom, top))
    axes.axis("off")
    for route in routes:
        _draw_edge(axes, route)
    for id, spot in spots.items():
        _draw_box(axes, graph.nodes[id], spot, graph.notes.get(id, ""), id in graph.start)
    _legend(axes, [kind for kind in COLOURS if any(node.kind == kind for node in graph.nodes.values())], top)
    figure.savefig(file, dpi=160, facecolor="white")


def layout(graph: Graph) -> tuple[dict[str, LayoutNode], list[list[LayoutNode]]]:
    """Return the position of each artifact by id, and the route of each edge from parent to child."""
    edges = [(a, b) for a, b in dict.fromkeys(graph.edges) if a != b and a in graph.nodes and b in graph.nodes]
    layer = _layers(list(graph.nodes), edges)
    spots = {id: LayoutNode(layer[id], HEIGHT) for id in graph.nodes}
    routes = []
    for parent, child in edges:
        between = [LayoutNode(number, POINT) for number in range(layer[parent] + 1, layer[child])]
        routes.append([spots[parent], *between, spots[child]])
        for one, other in pairwise(routes[-1]):
            one.after.append(other)
            other.before.append(one)
    columns: list[list[LayoutNode]] = [[] for _ in range(max(layer.values()) + 1)]
    for spot in dict.fromkeys([*spots.values(), *(spot for route in routes for spot in route)]):
        columns[spot.layer].append(spot)
    for column in columns:
        _stack(column, [0.0] * len(column))
    for sweep in range(
        SWEEPS
    ):  # alternate directions: order each column by its neighbours on one side, in the last sweeps on both
        for column in columns if sweep % 2 == 0 else reversed(columns):
            sides = [spot.before if sweep % 2 == 0 else spot.after for spot in column]
            if sweep >= SWEEPS - 4:
                sides = [spot.before + spot.after for spot in column]
            wanted = [
                mean(other.y for other in side) if side else spot.y for spot, side in zip(column, sides, strict=True)
            ]
            order = sorted(range(len(column)), key=wanted.__getitem__)
            column[:] = [column[i] for i in order]
            _stack(column, [wanted[i] for i in order])
    return spots, routes


def _layers(ids: list[str], edges: list[tuple[str, str]]) -> dict[str, int]:
    """Layer = longest path from a root; a node without parents is placed just before its first child."""
    layer = dict.fromkeys(ids, 0)
    for _ in ids:  # as many rounds as there are artifacts are alroutes enough, a circle or not
        for parent, child in edges:
            layer[child] = max(layer[child], min(layer[parent] + 1, len(ids)))
    with_parents = {child for _, child in edges}
    for id in ids:
        if id not in with_parents and (after := [layer[child] for parent, child in edges if parent == id]):
            layer[id] = min(after) - 1
    return layer


def _stack(column: list[LayoutNode], wanted: list[float]) -> None:
    """Set the y of a column's nodes, in order, as close to the wanted values as the gaps allow.

    Neighbours that would overlap move as one block, to the mean of their wanted positions.
    """
    blocks: list[tuple[float, list[LayoutNode], float]] = []  # wanted top, nodes, height
    for spot, y in zip(column, wanted, strict=True):
        block = (y - spot.height / 2, [spot], spot.height)
        while blocks and blocks[-1][0] + blocks[-1][2] + GAP_Y > block[0]:
            top, spots, height = blocks.pop()
            lower = block[0] - height - GAP_Y  # top of the upper block if the lower block stayed in place
            share = len(spots) / (len(spots) + len(block[1]))
            block = (share * top + (1 - share) * lower, spots + block[1], height + GAP_Y + block[2])
        blocks.append(block)
    for top, spots, _ in blocks:
        for spot in spots:
            spot.y = top + spot.height / 2
            top += spot.height + GAP_Y


def _draw_edge(axes, route: list[LayoutNode]) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    points, codes = [(route[0].x + WIDTH, route[0].y)], [Curve.MOVETO]
    for one, other in pairwise(route):
        x0, x1 = one.x + WIDTH, other.x
        middle = (x0 + x1) / 2
        points += [(middle, one.y), (middle, other.y), (x1, other.y)]
        codes += [Curve.CURVE4] * 3
        if other is not route[-1]:
            points.append((x1 + WIDTH, other.y))
            codes.append(Curve.LINETO)
    line = {"color": "#8a8f98", "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0, "zorder": 1}
    axes.add_patch(FancyArrowPatch(path=Curve(points, codes), arrowstyle="-|>", mutation_scale=8, fill=False, **line))


def _draw_box(axes, node: Node, spot: LayoutNode, note: str, start: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    border, fill = COLOURS[node.kind]
    axes.add_patch(
        FancyBboxPatch(
            (spot.x + 4, spot.y - HEIGHT / 2 + 4), WIDTH - 8, HEIGHT - 8, boxstyle="round,pad=4,rounding_size=5",
            linewidth=2.2 if start else 1.0, edgecolor=border, facecolor=fill, zorder=2,
        )
    )  # fmt: skip
    head, *lines = node_lines(node, note)
    middle = spot.x + WIDTH / 2
    heights = (-9, 4, 15) if len(lines) == 2 else (-6, 8)
    text = {"ha": "center", "va": "center", "zorder": 3, "parse_math": False}
    axes.text(middle, spot.y + heights[0], head, fontsize=8.5, fontweight="bold", color="#1c1c1c", **text)
    for line, y in zip(lines, heights[1:], strict=False):
        axes.text(middle, spot.y + y, line, fontsize=7, color="#444444", **text)


def node_lines(node: Node, note: str = "") -> list[str]:
    """Return the text in an artifact's box: its name, then one or two lines."""
    if node.kind == "version":
        return [_cut(node.id.removeprefix("models:/"), 19), _cut(node.name or "version", 24)]
    if node.kind == "endpoint":
        return [_cut(node.name, 19), "endpoint"]
    if not node.kind:
        return [node.short, "unknown"]
    return [_cut(node.step or node.kind, 19), _cut(note or node.name or node.kind, 24), node.id[:12]]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _legend(axes, kinds: list[str], top: float) -> None:
    from matplotlib.patches import Rectangle

    for column, kind in enumerate(kinds):
        border, fill = COLOURS[kind]
        x, y = MARGIN + column * (WIDTH - 20), top + MARGIN
        axes.add_patch(Rectangle((x, y - 5), 10, 10, edgecolor=border, facecolor=fill, linewidth=1.0))
        axes.text(x + 15, y, kind or "unknown", fontsize=7.5, va="center", color="#333333")
