"""Taking a pair down: everything that used it, where each is, and what is to be done about it.

A pair is taken down with its picture: every pair of the same picture, byte for byte, goes too, whatever its texts.
"""

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from pipelines.lineage import pairs
from pipelines.lineage.history import History, Node
from pipelines.lineage.pairs import Holders
from pipelines.lineage.reference import UID
from pipelines.lineage.trace import read as history_of
from vlmflow.artifacts import exclusion_list
from vlmflow.artifacts.dataset import uid as digest
from vlmflow.errors import DataError
from vlmflow.tracking import mlflow_run

pc: Any = pyarrow.compute  # whose functions are made at run time
_CLIENT = "from mlflow import MlflowClient; MlflowClient()."

_USES = {"model": "learned from it", "version": "holds such a model", "endpoint": "serves such a model"}


@dataclass(frozen=True)
class Use:
    """One thing that used the pair."""

    id: str
    kind: str
    title: str
    use: str  # such as `1 train`, or `learned from it`
    places: list[str]
    remedy: list[str]


@dataclass(frozen=True)
class Takedown:
    """What is to go: the pairs, their picture, everything that used them, and what could not be looked into."""

    uid: str
    pairs: list[str]
    pictures: list[str]  # uids of the pictures alone
    exclusion_list: str
    uses: list[Use]
    unread: list[str]

    @property
    def content(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @property
    def text(self) -> str:
        """For a person: lines, of which those that are commands may be copied."""
        others = len(self.pairs) - 1
        more = f", and {others} more of the same picture: {', '.join(self.pairs[1:4])}" if others else ""
        lines = [f"pair {self.uid}{more}{', …' if others > 3 else ''}"]
        for kind in ("endpoint", "version", "model", "dataset"):  # what is seen by the world goes first
            uses = [use for use in self.uses if use.kind == kind]
            lines.append(f"{kind}s: {len(uses)}")
            for use in uses:
                lines += [f"  {use.title}: {use.use}", *(f"    at {place}" for place in use.places)]
                lines += [f"    {line}" for line in use.remedy]
        lines += [f"not looked into: {reason}" for reason in self.unread]
        file = self.exclusion_list
        return "\n".join([*lines, f"{file}: the exclusion list; `--set curate.exclude={file}` keeps the pair out"])


def takedown(uid: str, out: Path, root: str | Path | None = None) -> Takedown:
    """List what used the pair, and put it and its picture on the exclusion list `out`.

    Raises:
        DataError: it is no uid, no dataset holds it, or the list cannot be written.
    """
    if not UID.fullmatch(uid):
        raise DataError(f"{uid}: no uid; a pair's uid has 32 hex digits, `vlmflow ledger` shows it")
    history = history_of(root)
    own = pairs.holders([uid], history)
    if not own.rows:
        out_of_reach = f"; {len(own.unread)} datasets are out of reach" if own.unread else ""
        raise DataError(f"{uid}: no dataset in {history.place} holds this pair{out_of_reach}")
    images = _images(uid, own, history)
    alike = [uid, *sorted(_alike(images, history) - {uid})]
    holders = pairs.holders(alike, history)
    graph = pairs.learned(holders, history)
    pictures = [digest(image) for image in images]
    exclusion_list.add(out, _entries(alike, pictures))
    nodes = sorted(graph.nodes.values(), key=lambda node: node.step)
    uses = [_use(node, graph.notes.get(node.id), shlex.quote(str(out)), history) for node in nodes]
    return Takedown(uid, alike, pictures, str(out), uses, list(holders.unread.values()))


def _entries(uids: list[str], pictures: list[str]) -> dict[str, str]:
    today = f"taken down {date.today()}"
    return dict.fromkeys(uids, f"pair, {today}") | dict.fromkeys(pictures, f"picture of pair {uids[0]}, {today}")


def _images(uid: str, holders: Holders, history: History) -> list[bytes]:
    """The pictures of the pair, as they stand in a dataset of pairs, or in the row itself."""
    for id in holders.rows:
        with pairs.shards(history.nodes[id]) as files:
            for file in files:
                for group, mask in _groups(file, lambda table: pc.equal(table["uid"], uid), ["uid"]):
                    column = file.read_row_group(group, [_pictures(file)])[0].filter(mask)
                    images = pc.list_flatten(column) if pa.types.is_list(column.type) else column
                    return [image["bytes"] for image in images.to_pylist() if image and image["bytes"]]
    return []


def _alike(images: list[bytes], history: History) -> set[str]:
    """The uids of every row, of pairs or of talk that no pair stands behind, that shows one of the pictures."""
    wanted, found = pa.array(images, pa.binary()), set[str]()
    for node in [node for node in history.nodes.values() if node.kind == "dataset" and images]:
        try:
            with pairs.shards(node) as files:
                for file in files:
                    found |= set(_showing(file, wanted))
        except DataError:
            continue  # `holders` says so
    return found


def _showing(file: pq.ParquetFile, wanted: pa.Array) -> Iterator[str]:
    talk = "pair" in file.schema_arrow.names  # a row made from a pair is found by the pair's uid
    for group, mask in _groups(file, lambda table: pc.equal(table["pair"], ""), ["pair"] if talk else []):
        table = file.read_row_group(group, ["uid", _pictures(file)]).filter(mask)
        column = table[1].combine_chunks()
        if talk:
            rows = pc.list_parent_indices(column)
            column = pc.list_flatten(column)
        else:
            rows = pa.array(range(len(table)))
        shown = pc.is_in(pc.struct_field(column, "bytes").cast(pa.binary()), wanted)
        yield from table["uid"].take(rows.filter(shown)).to_pylist()


def _groups(file: pq.ParquetFile, test: Any, columns: list[str]) -> Iterator[tuple[int, Any]]:
    """The row groups that hold a row which passes, and the mask of those rows; only `columns` are read for it."""
    for group in range(file.num_row_groups):
        if columns:
            mask = test(file.read_row_group(group, columns))
        else:
            mask = pa.chunked_array([pa.repeat(True, file.metadata.row_group(group).num_rows)])
        if pc.any(mask).as_py():
            yield group, mask


def _pictures(file: pq.ParquetFile) -> str:
    return "image" if "image" in file.schema_arrow.names else "images"


def _use(node: Node, rows: str | None, out: str, history: History) -> Use:
    use = f"holds {rows}" if rows else _USES[node.kind]
    return Use(node.id, node.kind, node.title, use, node.places, list(_remedy(node, out, history)))


def _remedy(node: Node, out: str, history: History) -> Iterator[str]:
    if node.kind == "dataset":
        if node.step in ("ingest", "fetch") or not set(node.parents) & history.nodes.keys():
            yield "take the row out of the source, so that it is not read again"
        yield f"make it again: {_again(node, out)}"
        for revision in node.facts.get("data_revision", []):
            yield f"revision {revision[:12]} still holds it: commit the new data, then `dvc gc --workspace --cloud`"
        yield from _deleted(node)
    elif node.kind == "model":
        yield f"train it again: {_again(node, out)}"
        yield from _deleted(node)
    elif node.kind == "version":
        name, _, number = node.id.removeprefix("models:/").rpartition("/")
        calls = [f"delete_registered_model_alias({name!r}, {alias!r})" for alias in filter(None, node.name.split(", "))]
        for call in [*calls, f"delete_model_version({name!r}, {number!r})"]:
            yield f"MLFLOW_TRACKING_URI={mlflow_run.store()} python -c " + shlex.quote(f"{_CLIENT}{call}")
        yield from (f"then delete its files: {place}" for place in node.places if "://" in place)
    elif "/" in node.name:
        namespace, name = node.name.split("/", 1)
        yield f"kubectl delete inferenceservice {name} --namespace {namespace}"


def _again(node: Node, out: str) -> str:
    """The command of the run that made it; where only MLflow knows of that, of a recipe."""
    folders = [folder for place in node.folders for folder in place.parents if (folder / "recipe.yaml").is_file()]
    recipe = shlex.quote(str(folders[0] / "recipe.yaml")) if folders else "RECIPE"
    return f"vlmflow run {recipe} --set curate.exclude={out}"


def _deleted(node: Node) -> Iterator[str]:
    for place in node.places:
        if place.startswith(("s3://", "minio://")):
            yield f"aws s3 rm --recursive {shlex.quote(place.replace('minio://', 's3://'))}"
        elif "://" in place:
            yield f"then delete {place}"
        else:
            yield f"rm -r {shlex.quote(place)}"
