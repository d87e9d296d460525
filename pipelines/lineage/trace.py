"""Trace lineage: what a model was made from, and where a pair was used.

`lineage` walks up: endpoint → model version → checkpoint → the checkpoints and datasets it was made from → raw pairs;
and down the same way. For a pair's uid it goes down: ledger's verdict → datasets that hold the pair → checkpoints that
trained on it → versions → endpoints.

`history` is the graph. It has two sources, merged by content hash: the artifacts and step records under the folder of
runs (`local_source`), and the steps' runs and registered versions in MLflow (`mlflow_source`), which also cover
artifacts in a bucket. `reference` resolves what the user typed, `pairs` searches the datasets for a pair,
`render_text` and `render_graph` show the result, and `takedown` lists what to do about a pair that must be removed.
"""

from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from pipelines.lineage import local_source, mlflow_source, pairs, reference, render_text
from pipelines.lineage.history import Graph, History
from vlmflow.errors import DataError, ServiceError
from vlmflow.tracking import mlflow_store

logger = getLogger(__name__)


@dataclass
class Lineage:
    """The result of a trace, as text, as JSON values and as a graph to draw."""

    text: RenderableType
    content: dict[str, Any]
    graph: Graph


def lineage(target: str, root: str | Path | None = None, *, up: bool = False, down: bool = False) -> Lineage:
    """Trace the ancestors of an artifact, or the descendants of a pair; `up` and `down` select one or both.

    Args:
        target: endpoint URL, manifest or transcript; `models:/vlm@champion`; folder of a checkpoint, run or dataset;
            MLflow or KFP run ID; hash of a dataset or checkpoint, or its first digits; data revision; pair uid.
        root: the folder of runs.

    Raises:
        ModelError, DataError: nothing matches `target`, or several things match.
        ServiceError: the endpoint or the registry does not answer.
    """
    history = read_history(root, registry=target.startswith("models:/"))
    resolved = reference.resolve(target, history)
    if resolved.kind == "uid":
        return _trace_pair(target, history, up=up, down=down or not up)
    texts: list[RenderableType] = []
    content: dict[str, Any] = {"reference": target, "kind": resolved.kind}
    graphs = []
    if up or not down:
        graphs.append(history.ancestors(resolved.ids))
        texts.append(render_text.tree(f"{target} comes from", graphs[-1], up=True))
        content["up"] = render_text.content(graphs[-1])
    if down:
        graphs.append(history.descendants(resolved.ids))
        texts.append(render_text.tree(f"{target} went into", graphs[-1], up=False))
        content["down"] = render_text.content(graphs[-1])
    return Lineage(Group(*texts), content, _merge_graphs(graphs))


def read_history(root: str | Path | None = None, *, registry: bool = False) -> History:
    """Read the history under `root` and in MLflow.

    Args:
        registry: MLflow is required.

    Raises:
        ServiceError: `registry` is set and MLflow does not answer.
    """
    place = Path(root).resolve() if root else mlflow_store.home()
    local = place == mlflow_store.home() and (mlflow_store.enabled() or (place / "mlflow.db").exists())
    history = History(f"{place}{f' and {mlflow_store.uri()}' if local else ''}")
    local_source.read(history, place)
    if local or registry:
        try:
            mlflow_source.read(history)
        except ServiceError as error:
            if registry:
                raise
            logger.warning("not included in the lineage: %s", error)
    return history


def _trace_pair(uid: str, history: History, *, up: bool, down: bool) -> Lineage:
    locations = pairs.locate_pairs([uid], history)
    if not locations.rows:
        out = f"; {len(locations.unread)} datasets could not be read" if locations.unread else ""
        raise DataError(f"{uid}: no dataset in {history.description} contains this pair{out}")
    graphs, texts = [], [_ledger_tree(uid, history)]
    content: dict[str, Any] = {"reference": uid, "kind": "uid", "verdicts": [*pairs.verdicts([uid], history)]}
    if up:
        graphs.append(history.ancestors(locations.rows))
        texts.append(render_text.tree(f"pair {uid} comes from", graphs[-1], up=True))
        content["up"] = render_text.content(graphs[-1])
    if down:
        graphs.append(pairs.models_trained_on(locations, history))
        texts.append(render_text.tree(f"pair {uid} went into", graphs[-1], up=False))
        content["down"] = render_text.content(graphs[-1])
    content["unread"] = locations.unread
    texts += [Text(f"not searched: {reason}") for reason in locations.unread.values()]
    return Lineage(Group(*texts), content, _merge_graphs(graphs))


def _ledger_tree(uid: str, history: History) -> RenderableType:
    """Return the verdicts of all ledgers on the pair, as a tree."""
    branch = Tree(Text(f"pair {uid} in the ledgers"))
    for row in pairs.verdicts([uid], history):
        why = f" by {row['rule']}: {row['value']} (threshold {row['threshold']})" if row["verdict"] != "kept" else ""
        branch.add(Text(f"{row['verdict']}{why}  {row['ledger']}"))
    return branch if branch.children else Text(f"pair {uid} is in no ledger")


def _merge_graphs(graphs: list[Graph]) -> Graph:
    whole = Graph([], {}, [])
    for graph in graphs:
        whole.start += [id for id in graph.start if id not in whole.start]
        whole.nodes |= graph.nodes
        whole.edges += [edge for edge in graph.edges if edge not in whole.edges]
        whole.notes |= graph.notes
    return whole
