"""Find a pair: the datasets that contain it, its verdicts in the ledgers, and the models trained on it."""

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

pc: Any = pyarrow.compute  # its functions are created at run time, which pyright cannot see
_KEYS = ("uid", "pair")  # the pair's own row, or a row made from it


@dataclass
class PairLocations:
    """Dataset id → number of rows by split; `unread` gives the datasets that could not be read, and why."""

    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


def locate_pairs(uids: Iterable[str], history: History) -> PairLocations:
    """Return the datasets that contain one of the pairs or rows made from one; reads only the id columns."""
    wanted, found = pa.array(sorted(uids), pa.string()), PairLocations()
    for node in [node for node in history.nodes.values() if node.kind == "dataset"]:
        splits: Counter[str] = Counter()
        try:
            with shards(node) as files:
                for file in files:
                    columns = [name for name in (*_KEYS, "split") if name in file.schema_arrow.names]
                    splits.update(_matching_rows(file.read(columns), wanted)["split"].to_pylist())
        except DataError as error:
            found.unread[node.id] = str(error)
        if splits:
            found.rows[node.id] = dict(splits)
    return found


def _matching_rows(table: pa.Table, wanted: pa.Array) -> pa.Table:
    masks = [pc.is_in(table[name], wanted) for name in _KEYS if name in table.column_names]
    return table.filter(masks[0] if len(masks) == 1 else pc.or_(*masks))


@contextmanager
def shards(node: Node) -> Iterator[Iterator[pq.ParquetFile]]:
    """Open the shards of a dataset at the first location where they exist.

    Raises:
        DataError: no location can be read.
    """
    reasons = []
    for place in node.places:
        try:
            # KFP writes minio:// for S3; AWS_ENDPOINT_URL gives the server.
            files = sorted(UPath(place.replace("minio://", "s3://")).glob("*.parquet"), key=str)
        except Exception as error:  # each protocol raises its own errors: credentials, network, permissions
            reasons.append(f"{place}: {' '.join(str(error).split())[:120]}")
            continue
        if files:
            with closing(_open_files(files)) as opened:
                yield opened
            return
        reasons.append(f"{place}: not found")
    raise DataError(f"dataset {node.short}: {'; '.join(reasons) or 'no location is recorded'}")


def _open_files(files: list[UPath]) -> Generator[pq.ParquetFile, None, None]:
    for file in files:
        with file.open("rb") as handle, pq.ParquetFile(handle) as shard:
            yield shard


def verdicts(uids: Iterable[str], history: History) -> Iterator[dict[str, Any]]:
    """Yield the verdicts on the pairs in the ledgers that lie beside the curated datasets."""
    wanted, seen = sorted(uids), set()
    for node in history.nodes.values():
        for folder in node.folders if node.kind == "dataset" else ():
            for file in sorted((folder.parent / "ledger").glob("*.parquet")):
                if (inode := file.stat().st_ino) in seen:  # the output of a cached step is a hard link to the first one
                    continue
                seen.add(inode)
                columns = ["uid", "verdict", "rule", "value", "threshold"]
                for row in pq.read_table(file, columns=columns, filters=[("uid", "in", wanted)]).to_pylist():
                    yield {**row, "ledger": str(file.parent)}


def models_trained_on(locations: PairLocations, history: History) -> Graph:
    """Return the datasets that contain the pair, and every model, version and endpoint trained on it.

    Only training rows count. A checkpoint inherits the training data of the checkpoint that it starts from; a version
    and an endpoint inherit those of their checkpoint.
    """
    graph = Graph([], {}, [])
    for id, splits in locations.rows.items():
        node = history.nodes[id]
        graph.nodes[id] = node
        graph.notes[id] = ", ".join(f"{count} {split}" for split, count in sorted(splits.items()))
        within = [parent for parent in node.parents if parent in locations.rows and parent != id]
        graph.edges += [(parent, id) for parent in within]
        if not within:
            graph.start.append(id)
    frontier = [id for id, splits in locations.rows.items() if "train" in splits]
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
