"""Takedown of a pair: list everything that used it, its location, and the action required.

A takedown covers the image: every pair with the same image, byte for byte, is included, whatever its caption.
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
from pipelines.lineage.pairs import PairLocations
from pipelines.lineage.reference import UID
from pipelines.lineage.trace import read_history as history_of
from vlmflow.artifacts import exclusion_list
from vlmflow.artifacts.dataset import uid as digest
from vlmflow.errors import DataError
from vlmflow.tracking import mlflow_store

pc: Any = pyarrow.compute  # its functions are created at run time, which pyright cannot see
_CLIENT = "from mlflow import MlflowClient; MlflowClient()."

_USAGES = {"model": "trained on it", "version": "contains such a model", "endpoint": "serves such a model"}


@dataclass(frozen=True)
class Usage:
    """An artifact or endpoint that used the pair."""

    id: str
    kind: str
    title: str
    usage: str  # such as `1 train`, or `trained on it`
    locations: list[str]
    actions: list[str]


@dataclass(frozen=True)
class Takedown:
    """The pairs to remove, their images, everything that used them, and the datasets that could not be read."""

    uid: str
    pairs: list[str]
    images: list[str]  # uids of the images alone
    exclusion_list: str
    usages: list[Usage]
    unread: list[str]

    @property
    def content(self) -> dict[str, Any]:
        """The takedown as JSON values."""
        return asdict(self)

    @property
    def text(self) -> str:
        """The takedown as text; commands stand on lines of their own, to be copied."""
        others = len(self.pairs) - 1
        more = f", and {others} more of the same image: {', '.join(self.pairs[1:4])}" if others else ""
        lines = [f"pair {self.uid}{more}{', …' if others > 3 else ''}"]
        for kind in ("endpoint", "version", "model", "dataset"):  # what is publicly visible comes first
            usages = [usage for usage in self.usages if usage.kind == kind]
            lines.append(f"{kind}s: {len(usages)}")
            for usage in usages:
                lines += [f"  {usage.title}: {usage.usage}", *(f"    at {path}" for path in usage.locations)]
                lines += [f"    {line}" for line in usage.actions]
        lines += [f"not searched: {reason}" for reason in self.unread]
        file = self.exclusion_list
        return "\n".join([*lines, f"{file}: the exclusion list; `--set curate.exclude={file}` keeps the pair out"])


def takedown(uid: str, out: Path, root: str | Path | None = None) -> Takedown:
    """List everything that used the pair, and add the pair and its image to the exclusion list `out`.

    Raises:
        DataError: the uid is malformed or in no dataset, or the list cannot be written.
    """
    if not UID.fullmatch(uid):
        raise DataError(f"{uid}: not a uid; a pair's uid has 32 hex digits, `vlmflow explain` prints it")
    history = history_of(root)
    own = pairs.locate_pairs([uid], history)
    if not own.rows:
        out_of_reach = f"; {len(own.unread)} datasets could not be read" if own.unread else ""
        raise DataError(f"{uid}: no dataset in {history.description} contains this pair{out_of_reach}")
    images = _images(uid, own, history)
    same_image = [uid, *sorted(_uids_of_same_images(images, history) - {uid})]
    locations = pairs.locate_pairs(same_image, history)
    graph = pairs.models_trained_on(locations, history)
    image_uids = [digest(image) for image in images]
    exclusion_list.add(out, _entries(same_image, image_uids))
    nodes = sorted(graph.nodes.values(), key=lambda node: node.step)
    usages = [_usage(node, graph.notes.get(node.id), shlex.quote(str(out)), history) for node in nodes]
    return Takedown(uid, same_image, image_uids, str(out), usages, list(locations.unread.values()))


def _entries(uids: list[str], image_uids: list[str]) -> dict[str, str]:
    today = f"taken down {date.today()}"
    return dict.fromkeys(uids, f"pair, {today}") | dict.fromkeys(image_uids, f"image of pair {uids[0]}, {today}")


def _images(uid: str, locations: PairLocations, history: History) -> list[bytes]:
    """Return the images of the pair, from the first dataset that contains it."""
    for id in locations.rows:
        with pairs.shards(history.nodes[id]) as files:
            for file in files:
                for group, mask in _groups(file, lambda table: pc.equal(table["uid"], uid), ["uid"]):
                    column = file.read_row_group(group, [_image_column(file)])[0].filter(mask)
                    images = pc.list_flatten(column) if pa.types.is_list(column.type) else column
                    return [image["bytes"] for image in images.to_pylist() if image and image["bytes"]]
    return []


def _uids_of_same_images(images: list[bytes], history: History) -> set[str]:
    """Return the uids of every pair, and of every conversation not made from a pair, with one of the images."""
    wanted, found = pa.array(images, pa.binary()), set[str]()
    for node in [node for node in history.nodes.values() if node.kind == "dataset" and images]:
        try:
            with pairs.shards(node) as files:
                for file in files:
                    found |= set(_uids_showing(file, wanted))
        except DataError:
            continue  # reported as unread by `locate_pairs`
    return found


def _uids_showing(file: pq.ParquetFile, wanted: pa.Array) -> Iterator[str]:
    conversations = "pair" in file.schema_arrow.names  # a row made from a pair is found by the pair's uid
    for group, mask in _groups(file, lambda table: pc.equal(table["pair"], ""), ["pair"] if conversations else []):
        table = file.read_row_group(group, ["uid", _image_column(file)]).filter(mask)
        column = table[1].combine_chunks()
        if conversations:
            rows = pc.list_parent_indices(column)
            column = pc.list_flatten(column)
        else:
            rows = pa.array(range(len(table)))
        shown = pc.is_in(pc.struct_field(column, "bytes").cast(pa.binary()), wanted)
        yield from table["uid"].take(rows.filter(shown)).to_pylist()


def _groups(file: pq.ParquetFile, test: Any, columns: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield the row groups with a row that passes `test`, and the mask of those rows; reads only `columns`."""
    for group in range(file.num_row_groups):
        if columns:
            mask = test(file.read_row_group(group, columns))
        else:
            mask = pa.chunked_array([pa.repeat(True, file.metadata.row_group(group).num_rows)])
        if pc.any(mask).as_py():
            yield group, mask


def _image_column(file: pq.ParquetFile) -> str:
    return "image" if "image" in file.schema_arrow.names else "images"


def _usage(node: Node, rows: str | None, out: str, history: History) -> Usage:
    usage = f"contains {rows}" if rows else _USAGES[node.kind]
    return Usage(node.id, node.kind, node.title, usage, node.places, list(_action(node, out, history)))


def _action(node: Node, out: str, history: History) -> Iterator[str]:
    if node.kind == "dataset":
        if node.step in ("ingest", "fetch") or not set(node.parents) & history.nodes.keys():
            yield "remove the row from the source, so that it is not ingested again"
        yield f"rebuild: {_rerun_command(node, out)}"
        for revision in node.facts.get("data_revision", []):
            yield f"revision {revision[:12]} still contains it: commit the new data, then `dvc gc --workspace --cloud`"
        yield from _delete_commands(node)
    elif node.kind == "model":
        yield f"retrain: {_rerun_command(node, out)}"
        yield from _delete_commands(node)
    elif node.kind == "version":
        name, _, number = node.id.removeprefix("models:/").rpartition("/")
        calls = [f"delete_registered_model_alias({name!r}, {alias!r})" for alias in filter(None, node.name.split(", "))]
        for call in [*calls, f"delete_model_version({name!r}, {number!r})"]:
            yield f"MLFLOW_TRACKING_URI={mlflow_store.uri()} python -c " + shlex.quote(f"{_CLIENT}{call}")
        yield from (f"then delete its files: {place}" for place in node.places if "://" in place)
    elif "/" in node.name:
        namespace, name = node.name.split("/", 1)
        yield f"kubectl delete inferenceservice {name} --namespace {namespace}"


def _rerun_command(node: Node, out: str) -> str:
    """Return the command that reruns the run that produced it; RECIPE where the run's folder is unknown."""
    folders = [folder for place in node.folders for folder in place.parents if (folder / "recipe.yaml").is_file()]
    recipe = shlex.quote(str(folders[0] / "recipe.yaml")) if folders else "RECIPE"
    return f"vlmflow run {recipe} --set curate.exclude={out}"


def _delete_commands(node: Node) -> Iterator[str]:
    for place in node.places:
        if place.startswith(("s3://", "minio://")):
            yield f"aws s3 rm --recursive {shlex.quote(place.replace('minio://', 's3://'))}"
        elif "://" in place:
            yield f"then delete {place}"
        else:
            yield f"rm -r {shlex.quote(place)}"
