"""Lineage in both directions, on the artifacts of a small run on disk and in a registry."""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from components.deploy.deployment import DeployConfig, deploy
from components.register.registration import register
from pipelines.lineage import pairs
from pipelines.lineage.history import History
from pipelines.lineage.render_graph import draw, layout
from pipelines.lineage.trace import Lineage, lineage
from tests.conftest import vlmflow
from vlmflow.artifacts import dataset, provenance
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.hashing import content_hash
from vlmflow.errors import DataError, ModelError, ServiceError
from vlmflow.tracking import mlflow_store, step_run
from vlmflow.tracking.registry import RegistryConfig

REVISION = "5d" * 20
KFP = "0c1f3f0e-6a5b-4d0e-9d57-1f6e3f6f0a11"


@dataclass
class Run:
    """A run in runs/1: raw → curated → conversations, and pretrain → align, which is registered and deployed.

    `kept`, `dropped` and `tested` are the uids of its three pairs.
    """

    home: Path
    kept: str
    dropped: str
    tested: str

    def __getitem__(self, path: str) -> Path:
        return self.home / "1" / path


def pair(colour: str, split: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
    constant = {"width": 32, "height": 32, "source": "test", "licence": "none", "label": "", "regions": [], "lines": []}
    return {
        "uid": dataset.uid(buffer.getvalue()),
        "image": buffer.getvalue(),
        "caption": colour,
        "split": split,
        **constant,
    }


def model(folder: Path, step: str, parent: str | None, datasets: list[str]) -> Checkpoint:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"made by": step}))
    card = {"family": "tiny-vlm", "step": step, "parent": parent, "datasets": datasets}
    (folder / "card.json").write_text(json.dumps(card))
    return Checkpoint(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    home = tmp_path_factory.mktemp("runs")
    rows = [pair("red", "train"), pair("blue", "train"), pair("green", "test")]
    run = Run(home, *(row["uid"] for row in rows))
    raw = dataset.write(run["ingest/raw"], "pairs", rows, step="ingest", revision=REVISION)
    curated = dataset.write(run["curate/curated"], "pairs", [rows[0], rows[2]], step="curate", parents=[raw.hash])
    turns = [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "red"}]
    conversations = [
        {
            "uid": "0" * 32,
            "pair": row["uid"],
            "images": [row["image"]],
            "messages": turns,
            "task": "vqa",
            "split": row["split"],
        }
        for row in (rows[0], rows[2])
    ]
    tasks = dataset.write(
        run["instructions/out"], "conversations", conversations, step="instructions", parents=[curated.hash]
    )
    ledger = run["curate/ledger"]
    ledger.mkdir()
    verdicts = [(run.kept, "kept", "", 0.0), (run.dropped, "dropped", "blank", 1.5), (run.tested, "kept", "", 0.0)]
    columns = dict(zip(("uid", "verdict", "rule", "value"), map(list, zip(*verdicts, strict=True)), strict=True))
    pq.write_table(pa.table({**columns, "threshold": [0.0, 2.0, 0.0]}), ledger / "ledger.parquet")
    (ledger / "summary.json").write_text(json.dumps({"rows_in": 3, "kept": 2, "dropped": {"blank": 1}}))
    pretrained = model(run["pretrain/model"], "pretrain", None, [curated.hash])
    aligned = model(run["gate/chosen"], "align", pretrained.hash, [tasks.hash])

    (run["gate/scores"]).mkdir()
    (run["gate/scores/scores.json"]).write_text(json.dumps({"model": aligned.hash, "data": []}))
    (run["gate/verdict"]).mkdir()
    (run["gate/verdict/verdict.json"]).write_text(json.dumps({"promoted": True, "against": None, "reasons": []}))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("VLMFLOW_HOME", str(home))
        chosen, scores, verdict = (run[f"gate/{part}"] for part in ("chosen", "scores", "verdict"))
        register(chosen, scores, verdict, run["register/version"], "seed: 0\n", RegistryConfig(), "c0de00112233")
        manifest, transcript = (run[f"deploy/{part}"] for part in ("manifest", "transcript"))
        section = DeployConfig(target="manifest", storage="pvc://models/vlm/1")
        version, image = run["register/version"], "registry/serve@sha256:ab"
        deploy(chosen, version, run["curate/curated"], manifest, transcript, image, section)
        yield run


@pytest.fixture(scope="module")
def mlflow_runs(run: Run) -> dict[str, str]:
    """Log the steps to MLflow as the pods of a cluster do. Maps each step to its run ID."""
    parent = step_run.find_or_create_pipeline_run(KFP)
    steps: dict[str, tuple[dict[str, str], dict[str, str]]] = {
        "ingest": ({}, {"raw": "ingest/raw"}),
        "curate": ({"raw": "ingest/raw"}, {"curated": "curate/curated", "ledger": "curate/ledger"}),
        "instructions": ({"pairs": "curate/curated"}, {"out": "instructions/out"}),
        "pretrain": ({"pairs": "curate/curated"}, {"model": "pretrain/model"}),
        "gate": ({}, {"chosen": "gate/chosen"}),
        "evaluate": ({"model": "pretrain/model"}, {}),
        "deploy": ({"version": "register/version"}, {"manifest": "deploy/manifest"}),
    }
    found = {"pipeline": parent}
    for step, (inputs, outputs) in steps.items():
        record = {
            "label": step,
            "step": step,
            "status": "done",
            "code": "0",
            "image": "registry/step@sha256:cd",
            "kfp_run": KFP,
            "inputs": {name: content_hash(run[path]) for name, path in inputs.items()},
            "input_paths": {name: str(run[path]) for name, path in inputs.items()},
            "outputs": {
                name: {"path": str(run[path]), "hash": content_hash(run[path])} for name, path in outputs.items()
            },
        }
        found[step] = str(step_run.log_step(record, parent))
    return found


def text_of(found: Lineage) -> str:
    console = Console(width=400, file=io.StringIO())
    console.print(found.text)
    return console.file.getvalue()  # type: ignore[attr-defined]


def steps(found: Lineage) -> set[str]:
    return {node.step for node in found.graph.nodes.values()}


ALL = {"ingest", "curate", "instructions", "pretrain", "align", "register", "deploy"}


@pytest.mark.parametrize(
    ("reference", "first", "reached"),
    [
        ("1", "deploy", ALL),
        ("1/deploy/manifest/inferenceservice.yaml", "deploy", ALL),
        ("1/deploy/manifest", "deploy", ALL),
        ("1/deploy/transcript", "deploy", ALL),
        ("1/deploy/transcript/transcript.json", "deploy", ALL),
        ("1/register/version", "register", ALL - {"deploy"}),
        ("models:/vlm@champion", "register", ALL - {"deploy"}),
        ("models:/vlm/1", "register", ALL - {"deploy"}),
        ("1/gate/chosen", "align", ALL - {"deploy", "register"}),
        ("1/instructions/out", "instructions", {"instructions", "curate", "ingest"}),
    ],
)
def test_every_reference_is_traced_to_the_raw_pairs(run: Run, reference: str, first: str, reached: set[str]) -> None:
    if reference == "1":
        (run["steps"]).mkdir(exist_ok=True)
    found = lineage(reference if ":" in reference else str(run.home / reference))
    assert [found.graph.nodes[id].step for id in found.graph.start] == [first]
    assert steps(found) == reached
    text = text_of(found)
    assert "ledger: 3 in, 2 kept" in text and f"at data revision {REVISION[:12]}" in text
    assert json.loads(json.dumps(found.content))["up"]["start"] == found.graph.start


def test_hashes_and_revisions_can_be_abbreviated(run: Run) -> None:
    whole = Checkpoint(run["gate/chosen"]).hash
    assert lineage(whole[:8]).graph.start == lineage(whole).graph.start == [whole]
    data = Dataset(run["curate/curated"]).hash
    assert lineage(data[:8]).graph.start == [data]
    assert lineage(REVISION[:10]).graph.start == [Dataset(run["ingest/raw"]).hash]
    assert lineage("c0de00", down=True).graph.start == ["models:/vlm/1"]


def test_the_descendants_of_a_dataset_are_models_versions_and_endpoints(run: Run) -> None:
    found = lineage(str(run["curate/curated"]), down=True)
    assert steps(found) == ALL - {"ingest"} and "down" in found.content and "up" not in found.content
    both = lineage(str(run["curate/curated"]), up=True, down=True)
    assert steps(both) == ALL and {"up", "down"} <= both.content.keys()
    assert steps(lineage(REVISION[:10], down=True)) == ALL


def test_run_ids_of_mlflow_and_kfp_are_valid_references(run: Run, mlflow_runs: dict[str, str]) -> None:
    for reference, first_step in (
        (KFP, "deploy"),
        (mlflow_runs["pipeline"], "deploy"),
        (mlflow_runs["gate"], "align"),
        (mlflow_runs["instructions"], "instructions"),
        (mlflow_runs["evaluate"], "pretrain"),  # it has no outputs: its input is used
    ):
        found = lineage(reference)
        assert found.graph.nodes[found.graph.start[0]].step == first_step, reference
    curated = lineage(str(run["curate/curated"])).graph.nodes[Dataset(run["curate/curated"]).hash]
    assert curated.provenance["kfp_run"] == [KFP] and curated.provenance["mlflow_run"] == [mlflow_runs["curate"]]
    assert curated.provenance["image"] == ["registry/step@sha256:cd"] and curated.provenance["code"]


def test_mlflow_alone_gives_the_same_lineage(
    run: Run, mlflow_runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_folders = lineage("models:/vlm@champion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store.uri())
    monkeypatch.setenv("VLMFLOW_HOME", str(tmp_path))
    from_mlflow = lineage("models:/vlm@champion")
    assert from_mlflow.graph.nodes.keys() == with_folders.graph.nodes.keys()
    assert sorted(from_mlflow.graph.edges) == sorted(with_folders.graph.edges)
    assert steps(lineage(run.kept)) == ALL  # the tags give the location of the shards
    assert lineage(KFP).graph.start[0].startswith("endpoint default/vlm")


def test_without_mlflow_the_folders_are_used_and_a_registered_version_is_an_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert steps(lineage(str(run["deploy/manifest"]))) == ALL
    assert "not included in the lineage: MLflow at http://127.0.0.1:9" in caplog.text
    with pytest.raises(ServiceError, match="MLflow at http://127.0.0.1:9"):
        lineage("models:/vlm@champion")


def test_a_training_pair_is_traced_to_every_model_trained_on_it(run: Run) -> None:
    found = lineage(run.kept)
    graph = found.graph
    assert {graph.nodes[id].step: note for id, note in graph.notes.items()} == dict.fromkeys(
        ("ingest", "curate", "instructions"), "1 train"
    )
    assert steps(found) == ALL
    assert [row["verdict"] for row in found.content["verdicts"]] == ["kept"]
    assert "version models:/vlm/1 (champion)" in text_of(found) and "1 train" in text_of(found)


def test_a_dropped_pair_shows_the_reason_and_no_models(run: Run) -> None:
    found = lineage(run.dropped)
    assert list(found.graph.nodes) == [Dataset(run["ingest/raw"]).hash]
    assert "dropped by blank: 1.5 (threshold 2.0)" in text_of(found)


def test_a_test_pair_is_traced_to_datasets_only(run: Run) -> None:
    found = lineage(run.tested)
    assert steps(found) == {"ingest", "curate", "instructions"}
    assert steps(lineage(run.tested, up=True)) == {"ingest", "curate", "instructions"}


def test_a_child_is_drawn_right_of_its_parent(run: Run, tmp_path: Path) -> None:
    graph = lineage("models:/vlm@champion").graph
    spots, routes = layout(graph)
    assert all(spots[parent].x < spots[child].x for parent, child in graph.edges)
    columns: dict[float, list[float]] = {}
    for spot in spots.values():
        columns.setdefault(spot.x, []).append(spot.y)
    assert all(b - a >= 44 for ys in columns.values() for a, b in zip(sorted(ys), sorted(ys)[1:], strict=False))
    assert len(routes) == len(set(graph.edges))
    draw(graph, tmp_path / "a.svg")
    draw(graph, tmp_path / "a.png")
    assert "<svg" in (tmp_path / "a.svg").read_text()
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.width > 2 * drawn.height
    with pytest.raises(DataError, match=r"--graph .*a\.gif: write a \.svg"):
        draw(graph, tmp_path / "a.gif")


def test_a_live_endpoint_is_traced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    served = {"id": "vlm", "model_hash": Checkpoint(run["gate/chosen"]).hash}
    requested = []

    def answer(request: httpx.Request) -> httpx.Response:
        requested.append(str(request.url))
        return httpx.Response(200, json={"data": [served]})

    client = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(httpx, "get", client.get)
    found = lineage("http://models.example/vlm/v1/models/vlm:predict")
    assert requested == ["http://models.example/vlm/openai/v1/models"]
    assert steps(found) == ALL
    del served["model_hash"]
    with pytest.raises(ServiceError, match="reports no model_hash"):
        lineage("http://models.example/vlm")


def test_a_step_record_is_matched_after_the_run_folder_has_moved(tmp_path: Path) -> None:
    run = tmp_path / "20250101-000000-ab12"
    raw = dataset.write(run / "ingest" / "raw", "pairs", [pair("red", "train")], step="ingest")
    (run / "steps").mkdir()
    (run / "mlflow_run_id").write_text("9" * 32)
    record = {"label": "ingest", "step": "ingest", "cached": False, "mlflow_run_id": "8" * 32, "inputs": {}}
    record["outputs"] = {"raw": {"path": f"/elsewhere/{run.name}/ingest/raw", "hash": content_hash(raw.path)}}
    (run / "steps" / "ingest.json").write_text(json.dumps(record))
    evaluated = {**record, "label": "evaluate", "mlflow_run_id": "7" * 32, "outputs": {}}
    evaluated["inputs"] = {"data": content_hash(raw.path)}
    (run / "steps" / "evaluate.json").write_text(json.dumps(evaluated))
    (tmp_path / "latest").symlink_to(run.name)
    for reference in (run.name, "9" * 32, "8" * 32, "7" * 32, str(tmp_path / "latest")):
        found = lineage(reference, root=tmp_path)
        assert found.graph.start == [raw.hash], reference
    assert found.graph.nodes[raw.hash].provenance == {"run": [run.name], "mlflow_run": ["8" * 32]}


def test_an_artifact_from_a_cluster_records_its_run_image_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [pair("red", "train")]
    assert dataset.write(tmp_path / "here", "pairs", rows).card.producer == {}
    monkeypatch.setenv("VLMFLOW_KFP_RUN", KFP)
    monkeypatch.setenv("VLMFLOW_IMAGE", "registry/step@sha256:cd")
    monkeypatch.setenv("VLMFLOW_REVISION", "c0de00112233")
    raw = dataset.write(tmp_path / "runs" / "raw", "pairs", rows, step="ingest")
    assert raw.card.producer == {"kfp_run": KFP, "image": "registry/step@sha256:cd", "code": "c0de00112233"}
    assert raw.hash == Dataset(tmp_path / "here").hash
    found = lineage(KFP, root=tmp_path / "runs")
    assert found.graph.start == [raw.hash] and f"KFP {KFP} · code c0de00112233 · image registry/step" in text_of(found)


def test_shards_in_a_bucket_are_searched(run: Run, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=s3)
    client.create_bucket(Bucket="shelf")
    for file in run["curate/curated"].iterdir():
        client.upload_file(str(file), "shelf", f"run/curated/{file.name}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    history = History("a bucket")
    node = history.add(
        provenance.read_origins(run["curate/curated"])[0], provenance.storage_address(Path("/minio/shelf/run/curated"))
    )
    assert node.places == ["minio://shelf/run/curated"]
    assert pairs.locate_pairs([run.kept], history).rows == {node.id: {"train": 1}}
    assert pairs.locate_pairs([run.dropped], history).rows == {}
    node.places[:] = ["s3://shelf/nowhere"]
    found = pairs.locate_pairs([run.kept], history)
    assert found.rows == {} and "s3://shelf/nowhere: not found" in found.unread[node.id]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_an_invalid_reference_is_a_one_line_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "torn.yaml").write_text("kind: InferenceService\nmetadata: {name: [\n")
    for reference, error, message in (
        ("f" * 32, DataError, "no dataset in .* contains this pair"),
        ("nothing", ModelError, "no artifact, run or uid matches in .*; give an endpoint URL"),
        ("f" * 12, ModelError, "no artifact, run or uid"),
        ("models:/vlm/7", ModelError, "models:/vlm/7: no such version; registered: models:/vlm/1"),
        ("models:/vlm@best", ModelError, "no such version; registered"),
        ("models:/", ModelError, "no such version; registered"),
        ("http://127.0.0.1:9", ServiceError, "http://127.0.0.1:9/openai/v1/models: ConnectError"),
        (str(tmp_path), ModelError, "not a checkpoint"),
        (str(tmp_path / "torn" / "torn.yaml"), DataError, "torn.yaml: not YAML"),
        ("recipes/mini.yaml", DataError, "contains no InferenceService; give an endpoint URL"),
    ):
        with pytest.raises(error, match=message) as caught:
            lineage(reference)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no artifact"):
        lineage("HEAD~100000")


def test_an_ambiguous_prefix_is_an_error(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "runs"
    shutil.copytree(run["pretrain/model"], home / "1" / "pretrain" / "model")
    card = json.loads((home / "1" / "pretrain" / "model" / "card.json").read_text())
    for digit in "01":
        folder = home / "2" / "pretrain" / digit
        shutil.copytree(run["pretrain/model"], folder)
        (folder / "card.json").write_text(json.dumps({"hash": "abcdef" + digit * 58, **card}))
    with pytest.raises(DataError, match="abcdef: ambiguous, 2 matches: abcdef0.*; give more digits"):
        lineage("abcdef", root=home)


def test_the_command_prints_and_draws(run: Run, tmp_path: Path) -> None:
    drawing = tmp_path / "chain.svg"
    done = vlmflow(run.home, "lineage", "models:/vlm@champion", "--down", "--json", "--graph", str(drawing))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["down"]["start"] == ["models:/vlm/1"] and drawing.exists()
    wrong = vlmflow(run.home, "lineage", "models:/vlm/9")
    assert wrong.returncode == 2 and wrong.stderr.strip().splitlines()[-1].startswith("error: models:/vlm/9: no such")
