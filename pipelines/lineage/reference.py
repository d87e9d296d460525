"""Resolve a user's reference (URL, path, id, hash, revision, uid) to artifacts."""

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
from vlmflow.tracking import mlflow_store

UID = re.compile(r"[0-9a-f]{32}")
_PREFIX = 6  # minimum length of an abbreviated hash
_SECONDS = 10.0
_CALLS = re.compile(r"/(v1|v2|openai)(/.*)?$")  # API path after an endpoint's base address

KINDS = (
    "an endpoint URL or manifest, models:/name@alias, the folder of a run, model or dataset, an MLflow or KFP run ID, "
    "a hash (at least 6 digits), a data revision, or a pair's uid (32 hex digits)"
)


@dataclass
class Reference:
    """The artifacts that a reference stands for, and the kind of reference."""

    kind: str
    ids: list[str]


def resolve(reference: str, history: History) -> Reference:
    """Resolve `reference` to artifacts; `ids` is empty for a pair's uid.

    Raises:
        ModelError, DataError: nothing matches, or several things match.
        ServiceError: the endpoint or MLflow does not answer.
    """
    if reference.startswith(("http://", "https://")):
        return Reference("endpoint", [_query_endpoint(reference, history)])
    if reference.startswith("models:/"):
        return Reference("version", [_version(reference, history)])
    if Path(reference).exists():
        return _from_path(Path(reference), history)
    return _from_identifier(reference, history)


def _query_endpoint(url: str, history: History) -> str:
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
            "of a vlmflow endpoint, or its manifest"
        ) from None
    model = served.get("model_hash")
    if not model:
        raise ServiceError(f"{base}: the endpoint reports no model_hash; give its manifest or its version")
    versions = [id for id in history.children.get(model, []) if history.nodes[id].kind == "version"]
    return _endpoint(f"{served.get('id', '')} at {base}", versions or [model], history)


def _endpoint(name: str, parents: list[str], history: History) -> str:
    endpoint = Origin(id=f"endpoint {name}", kind="endpoint", name=name, step="deploy", parents=parents)
    return history.add(endpoint).id


def _version(reference: str, history: History) -> str:
    from vlmflow.tracking.registry import format_versions

    name, at, which = re.fullmatch(r"models:/([^@/]*)([@/]?)(.*)", reference).groups()  # type: ignore[union-attr]
    for node in history.nodes.values():
        mine = node.kind == "version" and node.id.startswith(f"models:/{name}/")
        if mine and (which in node.name.split(", ") if at == "@" else node.id == reference):
            return node.id
    mlflow_store.client()  # if the store cannot be reached, report that instead
    raise ModelError(f"{reference}: no such version; registered: {format_versions()}")


def _from_path(path: Path, history: History) -> Reference:
    if path.is_file():
        return Reference("endpoint", _from_file(path, history))
    if (path / "steps").is_dir():
        run = path.resolve()
        made = [node.id for node in history.nodes.values() if any(run in Path(p).parents for p in node.places)]
        if not made:
            raise DataError(f"{path}: this run has produced no artifacts yet; see {run / 'run.log'}")
        return Reference("run", made)
    if (path / "transcript.json").is_file():
        return Reference("endpoint", _from_file(path / "transcript.json", history))
    ids = [history.add(one, str(path.resolve())).id for one in provenance.read_origins(path)]
    if not ids:
        from vlmflow.serving.resolve import resolve

        path = resolve(path)
        ids = [history.add(one, str(path.resolve())).id for one in provenance.read_origins(path)]
    for beside in sorted(
        path.resolve().parent.glob("*/card.json")
    ):  # the layout of dvc.yaml: data/raw, data/curated, …
        local_source.add(history, beside.parent)
    return Reference(history.nodes[ids[-1]].kind, ids)


def _from_file(path: Path, history: History) -> list[str]:
    if path.name == "transcript.json":
        beside = path.parent.parent / "manifest"
        if not (files := sorted(beside.glob("*.yaml"))):
            raise DataError(f"{path}: no manifest in {beside}; give the endpoint's manifest or its version")
    else:
        files = [path]
    ids = [
        history.add(one, str(file.resolve().parent)).id for file in files for one in provenance.manifest_origins(file)
    ]
    if not ids:
        raise DataError(f"{path}: contains no InferenceService; give {KINDS}")
    return ids


def _from_identifier(reference: str, history: History) -> Reference:
    """Resolve a run id, a hash, a revision or a uid."""
    named = [step for step in history.steps.values() if reference in step.names]
    if named:
        made = [id for step in named for id in step.made]
        if not made:  # a step without artifacts, such as an evaluation: use its inputs
            made = [id for step in named for content in step.inputs for id in history.contents.get(content, [])]
        if made:
            return Reference("run", made)
    produced = [node.id for node in history.nodes.values() if reference in node.facts.get("kfp_run", [])]
    if produced:
        return Reference("run", produced)
    if UID.fullmatch(reference):
        return Reference("uid", [])
    if re.fullmatch(rf"[0-9a-f]{{{_PREFIX},64}}", reference):
        if id := history.find_by_prefix(reference):
            return Reference(history.nodes[id].kind, [id])
        if found := _revision(reference, history):
            return found
    if commit := _commit(reference):
        if found := _revision(commit, history):
            return found
        raise DataError(f"{reference}: no dataset of revision {commit[:12]} in {history.description}")
    raise ModelError(f"{reference}: no artifact, run or uid matches in {history.description}; give {KINDS}")


def _revision(prefix: str, history: History) -> Reference | None:
    """Return the artifacts made from the data, or by the code, of a revision."""
    for fact in ("data_revision", "code"):
        by: dict[str, list[str]] = {}
        for node in history.nodes.values():
            for value in node.provenance.get(fact, []) if fact == "code" or node.kind == "dataset" else ():
                if value.startswith(prefix) or (fact == "code" and prefix.startswith(value)):
                    by.setdefault(value, []).append(node.id)
        if len({value.removesuffix("-dirty") for value in by}) > 1 and fact == "data_revision":
            raise ambiguous(prefix, list(by))
        if by:
            return Reference("revision", list(dict.fromkeys(id for ids in by.values() for id in ids)))
    return None


def _commit(name: str) -> str:
    """Return the commit of a tag or branch in the current directory's repository, or ""."""
    if name.startswith("-"):
        return ""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
