"""Where a model comes from, and where a pair went.

`lineage` walks up: endpoint → model version → checkpoint → the checkpoints and datasets it was made from → raw pairs;
and down the same way. For a pair's uid it goes down: ledger's verdict → datasets that hold the pair → checkpoints that
learned from it → versions → endpoints.

`history` is what is walked. It has two sources, merged by content hash: the artifacts and the steps' records under
the folder of runs (`folders`), and the steps' runs and the registered versions in MLflow (`store`), which tell the
same of what lies in a bucket. `reference` reads what a person types, `pairs` looks for a pair in the data, `telling`
and `picture` show what was found; `takedown` says what is to be done about a pair that must go.
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
from vlmflow.tracking import mlflow_run

logger = getLogger(__name__)


@dataclass
class Lineage:
    """What was found: for a person, for a program, and for a picture."""

    text: RenderableType
    content: dict[str, Any]
    graph: Graph


def lineage(what: str, root: str | Path | None = None, *, up: bool = False, down: bool = False) -> Lineage:
    """Walk up from a thing or down from a pair; `up` and `down` ask for the one, the other or both.

    Args:
        what: an endpoint's address, manifest or transcript; `models:/vlm@champion`; the folder of a checkpoint, a run
            or a dataset; the id of a run of MLflow or KFP; a hash of a dataset or a checkpoint, or how it begins; a
            data revision; a pair's uid.
        root: the folder of runs.

    Raises:
        ModelError, DataError: `what` means nothing, or several things.
        ServiceError: an endpoint, or the registry that is asked for, does not answer.
    """
    history = read(root, registry=what.startswith("models:/"))
    meant = reference.find(what, history)
    if meant.kind == "uid":
        return _pair(what, history, up=up, down=down or not up)
    texts: list[RenderableType] = []
    content: dict[str, Any] = {"reference": what, "kind": meant.kind}
    graphs = []
    if up or not down:
        graphs.append(history.above(meant.ids))
        texts.append(render_text.tree(f"{what} comes from", graphs[-1], up=True))
        content["up"] = render_text.content(graphs[-1])
    if down:
        graphs.append(history.below(meant.ids))
        texts.append(render_text.tree(f"{what} went into", graphs[-1], up=False))
        content["down"] = render_text.content(graphs[-1])
    return Lineage(Group(*texts), content, _joined(graphs))


def read(root: str | Path | None = None, *, registry: bool = False) -> History:
    """The history under `root` and in MLflow.

    Args:
        registry: it cannot do without MLflow.

    Raises:
        ServiceError: MLflow does not answer and `registry`.
    """
    place = Path(root).resolve() if root else mlflow_run.home()
    local = place == mlflow_run.home() and (mlflow_run.enabled() or (place / "mlflow.db").exists())
    history = History(f"{place}{f' and {mlflow_run.store()}' if local else ''}")
    local_source.read(history, place)
    if local or registry:
        try:
            mlflow_source.read(history)
        except ServiceError as error:
            if registry:
                raise
            logger.warning("left out of the lineage: %s", error)
    return history


def _pair(uid: str, history: History, *, up: bool, down: bool) -> Lineage:
    holders = pairs.holders([uid], history)
    if not holders.rows:
        out = f"; {len(holders.unread)} datasets are out of reach" if holders.unread else ""
        raise DataError(f"{uid}: no dataset in {history.place} holds this pair{out}")
    graphs, texts = [], [_told(uid, history)]
    content: dict[str, Any] = {"reference": uid, "kind": "uid", "verdicts": [*pairs.verdicts([uid], history)]}
    if up:
        graphs.append(history.above(holders.rows))
        texts.append(render_text.tree(f"pair {uid} comes from", graphs[-1], up=True))
        content["up"] = render_text.content(graphs[-1])
    if down:
        graphs.append(pairs.learned(holders, history))
        texts.append(render_text.tree(f"pair {uid} went into", graphs[-1], up=False))
        content["down"] = render_text.content(graphs[-1])
    content["unread"] = holders.unread
    texts += [Text(f"not looked into: {reason}") for reason in holders.unread.values()]
    return Lineage(Group(*texts), content, _joined(graphs))


def _told(uid: str, history: History) -> RenderableType:
    """What the ledgers say."""
    said = Tree(Text(f"pair {uid} in the ledgers"))
    for row in pairs.verdicts([uid], history):
        why = f" by {row['rule']}: {row['value']} against {row['threshold']}" if row["verdict"] != "kept" else ""
        said.add(Text(f"{row['verdict']}{why}  {row['ledger']}"))
    return said if said.children else Text(f"pair {uid} is in no ledger")


def _joined(graphs: list[Graph]) -> Graph:
    whole = Graph([], {}, [])
    for graph in graphs:
        whole.start += [id for id in graph.start if id not in whole.start]
        whole.nodes |= graph.nodes
        whole.edges += [edge for edge in graph.edges if edge not in whole.edges]
        whole.notes |= graph.notes
    return whole
