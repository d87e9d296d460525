"""Where a pair is: the datasets that hold it, what their ledgers say of it, and what learned from it."""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from upath import UPath

from pipelines.lineage.history import Graph, History, Node
from vlmflow.errors import DataError

pc: Any = pyarrow.compute  # whose functions are made at run time
_KEYS = ("uid", "pair")  # a row is the pair itself, or was made from it


@dataclass
class Holders:
    """Datasets by id → rows of each split; `unread` are those that are out of reach, and why."""

    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


def holders(uids: Iterable[str], history: History) -> Holders:
    """The datasets that hold one of the pairs, or rows made from one; of every shard only two columns are read."""
    wanted, found = pa.array(sorted(uids), pa.string()), Holders()
    for node in [node for node in history.nodes.values() if node.kind == "dataset"]:
        splits: Counter[str] = Counter()
        try:
            with shards(node) as files:
                for file in files:
                    columns = [name for name in (*_KEYS, "split") if name in file.schema_arrow.names]
                    splits.update(_held(file.read(columns), wanted)["split"].to_pylist())
        except DataError as error:
            found.unread[node.id] = str(error)
        if splits:
            found.rows[node.id] = dict(splits)
    return found


def _held(table: pa.Table, wanted: pa.Array) -> pa.Table:
    masks = [pc.is_in(table[name], wanted) for name in _KEYS if name in table.column_names]
    return table.filter(masks[0] if len(masks) == 1 else pc.or_(*masks))


@contextmanager
def shards(node: Node) -> Iterator[Iterator[pq.ParquetFile]]:
    """The shards of a dataset, from the first of its places where they are.

    Raises:
        DataError: they are in none.
    """
    refusals = []
    for place in node.places:
        try:
            # KFP's minio:// is S3 by another name; where it is, AWS_ENDPOINT_URL says.
            files = sorted(UPath(place.replace("minio://", "s3://")).glob("*.parquet"), key=str)
        except Exception as error:  # each protocol has errors of its own: no credentials, no route, no right
            refusals.append(f"{place}: {' '.join(str(error).split())[:120]}")
            continue
        if files:
            with closing(_opened(files)) as opened:
                yield opened
            return
        refusals.append(f"{place}: no longer there")
    raise DataError(f"dataset {node.short}: {'; '.join(refusals) or 'no place is known'}")


def _opened(files: list[UPath]) -> Generator[pq.ParquetFile, None, None]:
    for file in files:
        with file.open("rb") as handle, pq.ParquetFile(handle) as shard:
            yield shard


def verdicts(uids: Iterable[str], history: History) -> Iterator[dict[str, Any]]:
    """What the ledgers beside the curated datasets say of the pairs."""
    wanted, seen = sorted(uids), set()
    for node in history.nodes.values():
        for folder in node.folders if node.kind == "dataset" else ():
            for file in sorted((folder.parent / "ledger").glob("*.parquet")):
                if (inode := file.stat().st_ino) in seen:  # an unchanged step's output is a link to the first one
                    continue
                seen.add(inode)
                columns = ["uid", "verdict", "rule", "value", "threshold"]
                for row in pq.read_table(file, columns=columns, filters=[("uid", "in", wanted)]).to_pylist():
                    yield {**row, "ledger": str(file.parent)}


def learned(holders: Holders, history: History) -> Graph:
    """The datasets that hold the pair, and what learned from it.

    Only training rows teach, and a checkpoint that goes on from another has learned what that one had; a version and
    an endpoint are their checkpoint.
    """
    graph = Graph([], {}, [])
    for id, splits in holders.rows.items():
        node = history.nodes[id]
        graph.nodes[id] = node
        graph.notes[id] = ", ".join(f"{count} {split}" for split, count in sorted(splits.items()))
        within = [parent for parent in node.parents if parent in holders.rows and parent != id]
        graph.edges += [(parent, id) for parent in within]
        if not within:
            graph.start.append(id)
    frontier = [id for id, splits in holders.rows.items() if "train" in splits]
    done: set[str] = set()
    while frontier:
        id = frontier.pop(0)
        if id in done:
            continue
        done.add(id)
        for child in history.children.get(id, []):
            if history.nodes[child].kind != "dataset" and child != id:
                graph.nodes[child] = history.nodes[child]
                graph.edges.append((id, child))
                frontier.append(child)
    return graph
