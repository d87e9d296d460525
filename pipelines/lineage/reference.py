"""From what a person types to the artifacts that it means."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.lineage import local_source
from pipelines.lineage.history import History, ambiguous
from vlmflow.artifacts import provenance
from vlmflow.artifacts.provenance import Origin
from vlmflow.errors import DataError, ModelError, ServiceError
from vlmflow.tracking import mlflow_run

UID = re.compile(r"[0-9a-f]{32}")
_PREFIX = 6  # digits that a hash may be cut to, at least
_SECONDS = 10.0
_CALLS = re.compile(r"/(v1|v2|openai)(/.*)?$")  # what may follow an endpoint's own address

KINDS = (
    "an endpoint's address or manifest, models:/name@alias, a run's, model's or dataset's folder, the id of a run of "
    "MLflow or KFP, a hash or how it begins, a data revision, or a pair's uid of 32 hex digits"
)


@dataclass
class Meant:
    """The artifacts that a reference means, and what kind of reference it is."""

    kind: str
    ids: list[str]


def find(reference: str, history: History) -> Meant:
    """The artifacts that `reference` means; none where it is a pair's uid.

    Raises:
        ModelError, DataError: it means nothing, or several things.
        ServiceError: the endpoint or MLflow does not answer.
    """
    if reference.startswith(("http://", "https://")):
        return Meant("endpoint", [_live(reference, history)])
    if reference.startswith("models:/"):
        return Meant("version", [_version(reference, history)])
    if Path(reference).exists():
        return _place(Path(reference), history)
    return _name(reference, history)


def _live(url: str, history: History) -> str:
    """Ask a running endpoint which checkpoint it serves."""
    import httpx

    parts = urlsplit(url)
    base = f"{parts.scheme}://{parts.netloc}{_CALLS.sub('', parts.path).rstrip('/')}"
    try:
        answer = httpx.get(f"{base}/openai/v1/models", timeout=_SECONDS)
        served: dict[str, Any] = answer.raise_for_status().json()["data"][0]
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
        raise ServiceError(
            f"{base}/openai/v1/models: {type(error).__name__}: {' '.join(str(error).split())[:120]}; give the address "
            "of an endpoint of ours, or its manifest"
        ) from None
    model = served.get("model_hash")
    if not model:
        raise ServiceError(f"{base}: does not say which checkpoint it serves; give its manifest, or its version")
    versions = [id for id in history.children.get(model, []) if history.nodes[id].kind == "version"]
    return _endpoint(f"{served.get('id', '')} at {base}", versions or [model], history)


def _endpoint(name: str, parents: list[str], history: History) -> str:
    told = Origin(id=f"endpoint {name}", kind="endpoint", name=name, step="deploy", parents=parents)
    return history.add(told).id


def _version(reference: str, history: History) -> str:
    from vlmflow.tracking.registry import listing

    name, at, which = re.fullmatch(r"models:/([^@/]*)([@/]?)(.*)", reference).groups()  # type: ignore[union-attr]
    for node in history.nodes.values():
        mine = node.kind == "version" and node.id.startswith(f"models:/{name}/")
        if mine and (which in node.name.split(", ") if at == "@" else node.id == reference):
            return node.id
    mlflow_run.client()  # a store that is gone is the reason then
    raise ModelError(f"{reference}: no such version; registered: {listing()}")


def _place(path: Path, history: History) -> Meant:
    if path.is_file():
        return Meant("endpoint", _file(path, history))
    if (path / "steps").is_dir():
        run = path.resolve()
        made = [node.id for node in history.nodes.values() if any(run in Path(p).parents for p in node.places)]
        if not made:
            raise DataError(f"{path}: this run has made no artifact yet; see {run / 'run.log'}")
        return Meant("run", made)
    if (path / "transcript.json").is_file():
        return Meant("endpoint", _file(path / "transcript.json", history))
    ids = [history.add(one, str(path.resolve())).id for one in provenance.read(path)]
    if not ids:
        from vlmflow.serving.resolve import resolve

        path = resolve(path)
        ids = [history.add(one, str(path.resolve())).id for one in provenance.read(path)]
    for beside in sorted(path.resolve().parent.glob("*/card.json")):  # as dvc.yaml lays out data
        local_source.add(history, beside.parent)
    return Meant(history.nodes[ids[-1]].kind, ids)


def _file(path: Path, history: History) -> list[str]:
    if path.name == "transcript.json":
        beside = path.parent.parent / "manifest"
        if not (files := sorted(beside.glob("*.yaml"))):
            raise DataError(f"{path}: no manifest in {beside}; give the endpoint's manifest, or its version")
    else:
        files = [path]
    ids = [history.add(one, str(file.resolve().parent)).id for file in files for one in provenance.manifest(file)]
    if not ids:
        raise DataError(f"{path}: no InferenceService in it; give {KINDS}")
    return ids


def _name(reference: str, history: History) -> Meant:
    """A name that steps go by, a hash, a revision or a uid."""
    named = [step for step in history.steps.values() if reference in step.names]
    if named:
        made = [id for step in named for id in step.made]
        if not made:  # such as an evaluation: what it was about
            made = [id for step in named for content in step.inputs for id in history.contents.get(content, [])]
        if made:
            return Meant("run", made)
    told = [node.id for node in history.nodes.values() if reference in node.facts.get("kfp_run", [])]
    if told:
        return Meant("run", told)
    if UID.fullmatch(reference):
        return Meant("uid", [])
    if re.fullmatch(rf"[0-9a-f]{{{_PREFIX},64}}", reference):
        if id := history.beginning(reference):
            return Meant(history.nodes[id].kind, [id])
        if found := _revision(reference, history):
            return found
    if commit := _commit(reference):
        if found := _revision(commit, history):
            return found
        raise DataError(f"{reference}: revision {commit[:12]} is that of no dataset in {history.place}")
    raise ModelError(f"{reference}: no artifact, run or uid in {history.place}; give {KINDS}")


def _revision(prefix: str, history: History) -> Meant | None:
    """What was made of the data, or by the code, of a revision."""
    for fact in ("data_revision", "code"):
        by: dict[str, list[str]] = {}
        for node in history.nodes.values():
            for value in node.making.get(fact, []) if fact == "code" or node.kind == "dataset" else ():
                if value.startswith(prefix) or (fact == "code" and prefix.startswith(value)):
                    by.setdefault(value, []).append(node.id)
        if len({value.removesuffix("-dirty") for value in by}) > 1 and fact == "data_revision":
            raise ambiguous(prefix, list(by))
        if by:
            return Meant("revision", list(dict.fromkeys(id for ids in by.values() for id in ids)))
    return None


def _commit(name: str) -> str:
    """The commit of a tag or a branch of the repository that this is called in, or ""."""
    if name.startswith("-"):
        return ""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
