"""Data of a DVC revision: two versions of a small repository, with a remote in a folder and on an S3 server."""

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from components.fetch.config import FetchConfig
from components.fetch.dvc import fetch
from components.ingest.config import IngestConfig
from components.ingest.ingestion import ingest
from components.instructions.config import InstructionConfig
from components.instructions.conversations import build_conversations
from pipelines.lineage.trace import lineage
from pipelines.placement import load as load_placement
from pipelines.step_cli import run_step
from tests.conftest import executor_input
from vlmflow.artifacts import dataset
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config.recipes import load
from vlmflow.errors import DataError, RecipeError
from vlmflow.runtime.code_hash import ROOT, import_closure
from vlmflow.runtime.step_runner import main

NAMES = ("raw", "curated", "ledger", "funnel", "conversations")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def pair(colour: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
    constant = {"width": 32, "height": 32, "source": "t", "licence": "", "label": "", "regions": [], "lines": []}
    name = dataset.uid(buffer.getvalue(), colour)
    return {"uid": name, "image": buffer.getvalue(), "caption": f"all {colour}", "split": "train", **constant}


def commit_data(repo: Path, colours: list[str], tag: str) -> str:
    """Write all artifacts as `dvc repro` does, version them as `tag`, and return the commit."""
    from dvc.repo import Repo

    data = repo / "data"
    shutil.rmtree(data, ignore_errors=True)
    raw = dataset.write(data / "raw", "pairs", map(pair, colours), step="ingest")
    curated = dataset.write(data / "curated", "pairs", raw.rows(), step="curate", parents=[raw.hash])
    build_conversations(curated.path, data / "instructions", InstructionConfig())
    (data / "ledger").mkdir()
    (data / "ledger" / "summary.json").write_text(json.dumps({"rows_in": len(raw), "kept": len(curated)}))
    (data / "funnel.html").write_text("<!doctype html>")
    with Repo(str(repo)) as versions:
        versions.add([str(path) for path in sorted(data.iterdir())])  # type: ignore[arg-type]  # DVC annotates a single path
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", tag)
    git(repo, "tag", tag)
    return git(repo, "rev-parse", "HEAD")


def set_remote(versions: Any, **remote: str) -> None:
    """Set the repository's default remote, with the name `shelf`."""
    with versions.config.edit("repo") as config:
        config["remote"] = {"shelf": remote}
        config["core"] = {"remote": "shelf", "analytics": False}


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with v1 (two pairs) and v2 (three), with the data pushed to a folder and the cache deleted."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("versions") / "repo"
    folder.mkdir()
    git(folder, "init", "-q")
    with Repo.init(str(folder)) as versions:
        set_remote(versions, url=str(folder.parent / "shelf"))
    commit_data(folder, ["red", "blue"], "v1")
    commit_data(folder, ["red", "blue", "green"], "v2")
    with Repo(str(folder)) as versions:
        versions.push(all_tags=True)
    shutil.rmtree(folder / ".dvc" / "cache")
    return folder


def fetch_all(repo: str | Path, rev: str, out: Path, **section: str) -> str:
    return fetch(FetchConfig(repo=str(repo), **section), rev, {name: out / name for name in NAMES})


def captions(folder: Path) -> list[str]:
    return [row["caption"] for row in Dataset(folder, "pairs").rows(["caption"])]


def test_each_revision_has_its_own_data(repo: Path, tmp_path: Path) -> None:
    for rev, expected in (("v1", ["all red", "all blue"]), ("v2", ["all red", "all blue", "all green"])):
        commit = fetch_all(repo, rev, tmp_path / rev)
        assert commit == git(repo, "rev-parse", rev)
        assert captions(tmp_path / rev / "curated") == expected
        for name in ("raw", "curated", "conversations"):
            assert Dataset(tmp_path / rev / name).card.revision == commit
    assert Dataset(tmp_path / "v2" / "raw").hash == Dataset(repo / "data" / "raw").hash


def test_a_checkpoint_depends_on_the_data_of_its_revision(repo: Path, tmp_path: Path) -> None:
    """Runs the steps fetch and pretrain; the checkpoint names the data, and the lineage its revision."""
    recipe = f"seed: 0\nfetch: {{repo: {repo}}}\n" + TRAINING
    for rev in ("v1", "v2"):
        out = tmp_path / rev
        run_step("fetch", recipe, {}, {name: str(out / name) for name in NAMES}, {"data_rev": rev})
        inputs = {"pairs": str(out / "curated"), "conversations": str(out / "conversations")}
        run_step("pretrain", recipe, inputs, {"model": str(out / "model")}, {})
        found = lineage(str(out / "model"), root=tmp_path)
        console = Console(width=300, file=io.StringIO())
        console.print(found.text)
        commit = git(repo, "rev-parse", rev)
        parents = {parent for parent, child in found.graph.edges if child in found.graph.start}
        assert all(found.graph.nodes[parent].facts["data_revision"] == [commit] for parent in parents)
        assert Dataset(out / "curated").hash in parents
        assert f"at data revision {commit[:12]}" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_moved_branch_is_fetched_again(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repo), str(clone))
    monkeypatch.setenv("VLMFLOW_RUN", str(tmp_path / "home" / "1"))
    call = ["kfp.dsl.executor_main", "--module", "components.fetch.component", "--function", "fetch", "--always_run"]
    for rev, expected in (("v1", 2), ("v2", 3)):
        git(clone, "branch", "-f", "moving", rev)
        folder = tmp_path / "home" / "1" / "train" / "fetch"
        parameters = {"recipe": f"fetch: {{repo: {clone}}}\n", "data_rev": "moving"}
        assert main([*call, "--executor_input", executor_input(folder, parameters, {}, list(NAMES))]) == 0
        assert len(Dataset(folder / "raw")) == expected


TRAINING = """
pretrain:
  family: tiny-dual-encoder
  training: {max_steps: 1, batch_size: 2, learning_rate: 1.0e-3, warmup_steps: 0}
"""


@pytest.mark.parametrize(
    "stage", ["ingest", "validate", "curate", "validate-curated", "instructions", "validate-instructions"]
)
def test_a_stage_depends_on_all_its_code(stage: str) -> None:
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    code = import_closure(f"components.{stage.split('-')[0]}.component")
    excluded = {"__init__.py", "vlmflow/errors.py"}  # their content does not affect the data
    files = [file.relative_to(ROOT).as_posix() for file in code]
    missing = [file for file in files if not any(file == dep or file.startswith(f"{dep}/") for dep in deps)]
    assert not [file for file in missing if file not in excluded and Path(file).name not in excluded]


def test_the_training_pipeline_fetches_every_dataset() -> None:
    from pipelines.end_to_end import end_to_end, train

    tasks = train.pipeline_spec.root.dag.tasks
    producers = {"ingest", "curate", "instructions"}
    assert producers <= set(end_to_end.pipeline_spec.root.dag.tasks) and not producers & set(tasks)
    for name, task in tasks.items():
        for given, artifact in task.inputs.artifacts.items():
            producer = artifact.task_output_artifact.producer_task
            data = given in ("pairs", *NAMES) or (name, given) in (("validate", "data"), ("evaluate", "earlier"))
            assert (producer == "fetch") == data, (name, given)
    assert tasks["fetch"].inputs.parameters["data_rev"].component_input_parameter == "data_rev"
    assert not load_placement().resources["fetch"].cache


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an S3 server on this machine, with an empty bucket `shelf`."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="shelf")
    yield address
    server.stop()


def test_data_can_be_pushed_to_and_pulled_from_s3(s3: str, tmp_path: Path) -> None:
    from dvc.repo import Repo

    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    git(origin, "init", "-q")
    with Repo.init(str(origin)) as versions:
        set_remote(versions, url="s3://shelf/vlmflow", endpointurl=s3)
    commit_data(origin, ["red"], "v1")
    commit_data(origin, ["red", "blue"], "v2")
    with Repo(str(origin)) as versions:
        assert versions.push(all_tags=True) > 0
    git(tmp_path, "clone", "-q", str(origin), str(clone))
    with Repo(str(clone)) as versions:
        versions.pull()
    assert captions(clone / "data" / "curated") == ["all red", "all blue"]
    shutil.rmtree(clone / ".dvc" / "cache")
    fetch_all(clone, "v1", tmp_path / "v1")
    assert captions(tmp_path / "v1" / "curated") == ["all red"]


def test_an_invalid_revision_or_source_is_a_one_line_error(repo: Path, tmp_path: Path) -> None:
    for rev, section, message in (
        ("v9", {}, "data_rev: 'v9': no such revision"),
        ("", {}, "data_rev: is empty; set a commit"),
        ("v1", {"raw": "data/none"}, "data/none at v1: not found"),
        ("v1", {"remote": "nowhere"}, "fetch.remote: 'nowhere': .* has shelf"),
        ("v1", {"repo": str(tmp_path / "none")}, "fetch.repo: .*not a git repository"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            fetch_all(**{"repo": repo, "rev": rev, "out": tmp_path / "out", **section})
        assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="fetch.repos: no such key"):
        load(FetchConfig, {"fetch": {"repos": "x"}}, "fetch")


def test_data_that_was_not_pushed_or_was_changed_is_rejected(repo: Path, tmp_path: Path) -> None:
    from dvc.repo import Repo

    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repo), str(clone))
    with Repo(str(clone)) as versions:
        set_remote(versions, url=str(tmp_path / "empty"))
    git(clone, "commit", "-qam", "use an empty remote")
    with pytest.raises(DataError, match="data/raw at HEAD: not in DVC.*run `dvc push` first"):
        fetch_all(clone, "HEAD", tmp_path / "out")
    assert not (tmp_path / "out" / "raw").exists()
    commit = commit_data(clone, ["red"], "v3")
    shard = clone / "data" / "raw" / "data-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-4] + b" PAR1")  # changed after its card was written
    with Repo(str(clone)) as versions:
        versions.add([str(clone / "data" / "raw")])  # type: ignore[arg-type]
    git(clone, "commit", "-qam", f"change the shard of {commit}")
    with pytest.raises(DataError, match="is not that of the card"):
        fetch_all(clone, "HEAD", tmp_path / "out")


def test_pairs_have_the_revision_of_a_versioned_source(tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    Image.new("RGB", (32, 32), "red").save(source / "a.png")
    (source / "list.jsonl").write_text(json.dumps({"image": "a.png", "caption": "all red"}) + "\n")

    def ingested_revision() -> str:
        section = IngestConfig(source="folder", path=str(source), holdout=0.0)
        return ingest(section, tmp_path / "out").card.revision

    assert ingested_revision() == ""
    git(tmp_path, "init", "-q")
    assert ingested_revision() == ""
    (tmp_path / ".gitignore").write_text("/images\n")  # as `dvc add` does
    (tmp_path / "images.dvc").write_text("outs: [{md5: 0.dir, path: images}]\n")
    git(tmp_path, "add", "images.dvc")
    git(tmp_path, "commit", "-qm", "version with DVC")
    first = git(tmp_path, "rev-parse", "HEAD")
    assert ingested_revision() == first
    git(tmp_path, "add", "-f", "images")
    git(tmp_path, "commit", "-qm", "version with git")
    assert ingested_revision() == git(tmp_path, "rev-parse", "HEAD") != first
    (source / "list.jsonl").write_text(json.dumps({"image": "a.png", "caption": "red all over"}) + "\n")
    assert ingested_revision() == git(tmp_path, "rev-parse", "HEAD") + "-dirty"
    pairs = Dataset(tmp_path / "out")
    assert (
        build_conversations(pairs.path, tmp_path / "instructions", InstructionConfig()).card.revision
        == pairs.card.revision
    )
