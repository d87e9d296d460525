"""Training on several nodes: a step's TrainJob on a fake cluster whose pods are local processes."""

import io
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from tests.jobs.fake_job_cluster import JobCluster
from tests.jobs.torchrun_targets import fail_on_second_node, raise_data_error, wait_for
from vlmflow.artifacts import dataset
from vlmflow.config import recipes
from vlmflow.errors import DataError, RecipeError, ServiceError
from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.jobs import rayjob
from vlmflow.runtime.jobs.trainjob import manifest, run_on_nodes
from vlmflow.training.checkpointing import MARKER
from vlmflow.training.config import TrainingConfig
from vlmflow.training.pretraining.config import PretrainConfig
from vlmflow.training.pretraining.training import pretrain

SCHEMAS = ROOT.parent / "shared" / "schemas"
SECTION: dict[str, Any] = {
    "family": "clip",
    "model": {
        "image_size": 16, "patch_size": 4, "vision_hidden_size": 16, "vision_layers": 1, "text_hidden_size": 16,
        "text_layers": 1, "projection_dim": 8, "head_dim": 8, "text_length": 12,
    },
}  # fmt: skip
TRAINING = {"max_steps": 120, "batch_size": 8, "save_every": 10}
TWO_NODES = TrainingConfig(nodes=2)
TRAIN_FUNCTION = "vlmflow.training.pretraining.training:train"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images, each of a different grey."""
    folder, rows = tmp_path_factory.mktemp("pairs"), []
    for i in range(24):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (10 * i, 10 * i, 10 * i)).save(buffer, "PNG")
        row = {"image": buffer.getvalue(), "caption": f"grey {i}", "width": 16, "height": 16, "uid": str(i)}
        more = {"source": "", "licence": "", "split": "train", "label": "", "regions": [], "lines": []}
        rows.append({**row, **more})
    dataset.write(folder, "pairs", rows)
    return folder


def pretrain_weights(pairs: Path, out: Path, **training: Any) -> dict[str, Any]:
    values = {**SECTION, "training": {**TRAINING, **training}}
    section = recipes.load(PretrainConfig, {"pretrain": values}, "pretrain")
    pretrain(pairs=pairs, conversations=None, out=out, section=section)
    return load_file(out / "model.safetensors")


def lose_a_node(cluster: JobCluster) -> None:
    """Kill the second node as soon as a checkpoint is complete."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        pods = [pod for pod in list(cluster.pods.values()) if "-node-0-1" in pod.name]
        if pods and list(cluster.shared.glob(f"checkpoints/*/checkpoint-*/{MARKER}")):
            pods[0].kill()
            return
        time.sleep(0.02)


@pytest.mark.soak
def test_two_nodes_with_a_lost_node_give_the_same_weights_as_two_processes(
    cluster: JobCluster,
    pairs: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    apart: Callable[..., Any],
) -> None:
    monkeypatch.setenv("VLMFLOW_CHECKPOINTS", str(tmp_path / "local"))
    reference = apart(partial(pretrain_weights, processes=2), pairs, tmp_path / "processes")
    threading.Thread(target=lose_a_node, args=(cluster,), daemon=True).start()
    with caplog.at_level(logging.INFO):
        distributed = pretrain_weights(pairs, tmp_path / "nodes", nodes=2)
    assert reference.keys() == distributed.keys()
    assert all((reference[name] == distributed[name]).all() for name in reference)
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("node-0: ") and "step 120 of 120" in line for line in lines)
    assert any(line.startswith("node-0: ") and "resuming from step" in line for line in lines)
    card = json.loads((tmp_path / "nodes" / "card.json").read_text())
    assert card["curve"] == json.loads((tmp_path / "processes" / "card.json").read_text())["curve"]
    assert not cluster.objects and not cluster.pods, "the job is deleted at its end"
    assert not list((cluster.shared / "jobs").iterdir()) and not list((cluster.shared / "checkpoints").iterdir())


def test_a_users_mistake_is_raised_in_the_step(cluster: JobCluster, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^3 rows are too few$"):
        run_on_nodes("pretrain", raise_data_error, TWO_NODES, 3, out=tmp_path / "out")
    assert len(cluster.created_objects) == 1 and not cluster.objects


def test_a_failed_node_is_reported_with_its_error_line(cluster: JobCluster, tmp_path: Path) -> None:
    cluster.restarts = 0
    with pytest.raises(ServiceError, match=r"TrainJob ocr-\w+: failed: .*node-1.*the second node cannot divide"):
        run_on_nodes("ocr", fail_on_second_node, TWO_NODES, out=tmp_path / "out")
    assert not cluster.objects and not (tmp_path / "out").exists()


def test_nodes_that_cannot_be_scheduled_are_reported_with_the_reason(
    cluster: JobCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.full = True
    monkeypatch.setenv("VLMFLOW_PATIENCE", "1")
    with pytest.raises(
        ServiceError, match=r"0 of 2 pods run after 1 s: FailedScheduling: .*Insufficient nvidia.com/gpu"
    ):
        run_on_nodes("ground", raise_data_error, TWO_NODES, 3, out=tmp_path / "out")
    assert not cluster.objects and not cluster.pods


STEP = """
import sys
from pathlib import Path
from vlmflow.training.config import TrainingConfig
from vlmflow.runtime.jobs.trainjob import run_on_nodes
from tests.jobs.torchrun_targets import wait_for

run_on_nodes("align", wait_for, TrainingConfig(nodes=2), sys.argv[1], out=Path(sys.argv[2]))
"""


def test_a_killed_step_rejoins_its_job(cluster: JobCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    signal_file = cluster.shared / "now"
    command = [sys.executable, "-c", STEP, str(signal_file), str(tmp_path / "out")]
    step = subprocess.Popen(command, env=cluster.environment(), cwd=ROOT)
    while not cluster.objects:
        assert step.poll() is None
        time.sleep(0.1)
    step.kill()
    step.wait()
    signal_file.touch()
    with caplog.at_level(logging.INFO):
        run_on_nodes("align", wait_for, TWO_NODES, str(signal_file), out=tmp_path / "out")
    assert "is already running" in caplog.text
    assert (tmp_path / "out").read_text() == "done" and len(cluster.created_objects) == 1


def test_a_terminated_step_deletes_its_job(cluster: JobCluster, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STEP, str(cluster.shared / "never"), str(tmp_path / "out")]
    step = subprocess.Popen(command, env=cluster.environment(), cwd=ROOT)
    while not cluster.objects:
        assert step.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    step.send_signal(signal.SIGTERM)
    assert step.wait(timeout=30) == 128 + signal.SIGTERM
    assert not cluster.objects and not cluster.pods


def test_several_nodes_need_a_shared_volume_and_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLMFLOW_SHARED", raising=False)
    with pytest.raises(ServiceError, match="VLMFLOW_SHARED"):
        run_on_nodes("caption", raise_data_error, TWO_NODES, 3, out=tmp_path / "out")
    monkeypatch.setenv("VLMFLOW_SHARED", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    with pytest.raises(ServiceError, match=r"caption.training.nodes 2: needs a cluster"):
        run_on_nodes("caption", raise_data_error, TWO_NODES, 3, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"nodes": 3}, "batch_size 8 is not a multiple of processes 1 on 3 nodes"),
        ({"resources": {"cpu": 4}}, "needs nodes above 1"),
        ({"sharding": "fsdp"}, "needs more than one process"),
        ({"sharding": "zero"}, "none of none, fsdp"),
    ],
)
def test_impossible_node_settings_are_rejected(training: dict[str, Any], message: str) -> None:
    values = {**SECTION, "training": {**TRAINING, **training}}
    with pytest.raises(RecipeError, match=message):
        recipes.load(PretrainConfig, {"pretrain": values}, "pretrain")


def validate(content: Any, file: str) -> None:
    schema = SCHEMAS / file
    if not schema.exists():
        pytest.skip("the schemas of the cluster are not available")
    jsonschema.validate(content, json.loads(schema.read_text()))


def test_the_job_matches_the_schema() -> None:
    job = manifest(
        "pretrain-0a",
        TrainingConfig(nodes=2, processes=8, batch_size=16, resources={"nvidia.com/gpu": 8}),
        TRAIN_FUNCTION,
    )
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 8)
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": "8"}
    validate(job, "trainer.kubeflow.org_v1alpha1_TrainJob.json")
    assert "resourcesPerNode" not in manifest("pretrain-0a", TWO_NODES, TRAIN_FUNCTION)["spec"]["trainer"]


def test_the_cards_of_a_job_name_its_run_and_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMFLOW_KFP_RUN", "run-1")
    monkeypatch.setenv("VLMFLOW_IMAGE", "registry/step:1")  # of the step, not of the job
    trainer = manifest("pretrain-0a", TWO_NODES, TRAIN_FUNCTION)["spec"]["trainer"]
    ray = rayjob.manifest("curate-0a", 1)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for container in (trainer, *ray["containers"]):
        found = {one["name"]: one.get("value") for one in container["env"]}
        assert found["VLMFLOW_KFP_RUN"] == "run-1" and found["VLMFLOW_IMAGE"] == container["image"]


def test_the_runtime_matches_the_schema() -> None:
    runtime = yaml.safe_load((ROOT / "infra/trainer/runtime.yaml").read_text())
    reference = manifest("pretrain-0a", TWO_NODES, TRAIN_FUNCTION)["spec"]["runtimeRef"]
    assert (reference["kind"], reference["name"]) == (runtime["kind"], runtime["metadata"]["name"])
    validate(runtime, f"trainer.kubeflow.org_v1alpha1_{runtime['kind']}.json")
