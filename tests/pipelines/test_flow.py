"""Compiled pipelines: default parameters, resources of each step, the exit handler, and the recipe of each step."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.json_format import MessageToDict

from components.finish.workflow import GROUP
from components.plan.sections import check
from pipelines import flow
from pipelines.catalog import PIPELINES, load_pipeline
from pipelines.placement import StepResources, load
from pipelines.pretraining import control_variants
from pipelines.step_cli import names
from pipelines.watch_run import task_titles
from tests.conftest import vlmflow
from vlmflow.config import recipes
from vlmflow.errors import RecipeError
from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.container_image import image_name

Documents = dict[str, tuple[dict[str, Any], dict[str, Any]]]
IMAGES: Any = {"VLMFLOW_STEP_IMAGE": "registry/step@sha256:1", "VLMFLOW_TRAIN_IMAGE": "registry/train@sha256:2"}
NEVER_CACHED = {"fetch", "champion", "base-model", "gate", "register", "deploy", "report", "finish"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files that `vlmflow compile` writes, by pipeline."""
    home = tmp_path_factory.mktemp("home")
    done = vlmflow(home, "compile", "--out", str(home / "ir"), process=True, **IMAGES)
    assert done.returncode == 0, done.stderr
    return {name: (home / "ir" / f"{name}.yaml").read_text(encoding="utf-8") for name in PIPELINES}


@pytest.fixture(scope="module")
def compiled(texts: dict[str, str]) -> Documents:
    """IR and executor settings of each pipeline."""
    found = {}
    for name, text in texts.items():
        ir, platform = parse(text)
        found[name] = (ir, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"])
    return found


def parse(text: str) -> Any:
    """Return the two documents of a compiled pipeline; with C's parser, which is ten times as fast."""
    return yaml.load_all(text, yaml.CSafeLoader)


def executors(ir: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: found["container"] for name, found in ir["deploymentSpec"]["executors"].items()}


def step_of(container: dict[str, Any]) -> str:
    return container["args"][container["args"].index("--function") + 1]


def tasks(ir: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return all tasks by name, including those in the exit handler's group and in loops."""
    groups = [ir["root"], *(component for component in ir["components"].values() if "dag" in component)]
    found = [item for group in groups for item in group["dag"]["tasks"].items()]
    return {label: task for label, task in found if "dag" not in ir["components"][task["componentRef"]["name"]]}


def test_every_step_is_in_a_pipeline(compiled: Documents) -> None:
    assert {step_of(container) for ir, _ in compiled.values() for container in executors(ir).values()} == set(names())


@pytest.mark.parametrize("name", PIPELINES)
def test_every_parameter_has_a_description_and_a_valid_default(name: str, compiled: Documents) -> None:
    """The UI shows the descriptions; the default recipe is the shipped file that its description names."""
    ir, _ = compiled[name]
    assert ir["pipelineInfo"]["name"] == name
    assert re.search(r"^1\. .*\n2\. ", ir["pipelineInfo"]["description"], re.MULTILINE)
    for parameter in ir["root"]["inputDefinitions"]["parameters"].values():
        assert parameter["description"] and parameter["parameterType"] == "STRING"
        assert parameter["isOptional"] and "defaultValue" in parameter
    recipe = ir["root"]["inputDefinitions"]["parameters"]["recipe"]
    file = re.search(r"recipes/[\w/-]+\.yaml", recipe["description"])
    assert file is not None, "the description names no recipe file"
    shipped = recipes.parse(str(ROOT / file[0]))
    given = recipes.parse(recipe["defaultValue"])
    assert given == (control_variants(shipped) if name == "zoo-check" else shipped)
    check(given)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_step_has_its_image_resources_and_secrets(name: str, compiled: Documents) -> None:
    ir, pods = compiled[name]
    for label, container in executors(ir).items():
        trains = step_of(container) in ("pretrain", "caption", "ground", "ocr", "align")
        assert container["image"] == ("registry/train@sha256:2" if trains else "registry/step@sha256:1")
        resources = container["resources"]
        assert resources["resourceCpuRequest"] == resources["resourceCpuLimit"]
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"] != ""
        assert int(pods[label]["activeDeadlineSeconds"]) > 0
        variables = {entry["envVar"] for secret in pods[label]["secretAsEnv"] for entry in secret["keyToEnv"]}
        assert {"MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"} <= variables
        assert ("VLMFLOW_WEBHOOK" in variables) == (step_of(container) == "finish")
        settings = {entry["envVar"] for config in pods[label]["configMapAsEnv"] for entry in config["keyToEnv"]}
        assert "MLFLOW_TRACKING_URI" in settings
        variables = {entry["name"]: entry["value"] for entry in container["env"]}
        assert variables["VLMFLOW_IMAGE"] == container["image"]
        # The label that KFP's API server sets on each pod of a run; a parameter would be part of KFP's cache key.
        label_of_run = {"name": "VLMFLOW_KFP_RUN", "fieldPath": "metadata.labels['pipeline/runid']"}
        assert pods[label]["fieldPathAsEnv"] == [label_of_run]
        mounts = {mount["constant"]: mount["mountPath"] for mount in pods[label].get("pvcMount", [])}
        assert mounts == ({"datasets": "/data"} if trains or step_of(container) == "curate" else {})
    for label, task in tasks(ir).items():
        step = label.rstrip("-0123456789")
        uncached = step in NEVER_CACHED or (name, step) == ("monitor-champion", "ingest")
        assert task["cachingOptions"].get("enableCache", False) != uncached, label
        assert ("retryPolicy" in task) == (step not in ("validate", "monitor")), label
        if retry := task.get("retryPolicy"):
            # Argo measures it from the start of the first attempt, and kills the attempt that runs at its end.
            executor = ir["components"][task["componentRef"]["name"]]["executorLabel"]
            attempts = retry["maxRetryCount"] + 1
            longest = int(pods[executor]["activeDeadlineSeconds"])
            assert int(retry["backoffMaxDuration"].removesuffix("s")) > attempts * longest, label


def test_what_people_look_at_is_a_page(compiled: Documents) -> None:
    """Kubeflow's UI shows HTML, Markdown and metrics, but no image files: a step that draws one also writes a page."""
    shown = {"system.HTML", "system.Markdown"}
    for ir, _ in compiled.values():
        for label, component in ir["components"].items():
            outputs = component.get("outputDefinitions", {}).get("artifacts", {})
            kinds = {name: one["artifactType"]["schemaTitle"] for name, one in outputs.items()}
            pages = {name for name, kind in kinds.items() if kind in shown}
            named = {name for name in kinds if name in ("page", "report", "funnel", "summary")}
            assert pages == named, label
            assert "figure" not in kinds or pages, label


@pytest.mark.parametrize("name", PIPELINES)
def test_the_exit_handler_runs_after_every_step(name: str, compiled: Documents) -> None:
    ir, _ = compiled[name]
    root = ir["root"]["dag"]["tasks"]
    assert set(root) == {GROUP, "finish"}
    assert root["finish"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    status = root["finish"]["inputs"]["parameters"]["status"]
    assert status["taskFinalStatus"]["producerTask"] == GROUP
    local = MessageToDict(load_pipeline(name).pipeline_spec)
    assert set(tasks(ir)) - {"plan", "finish"} == set(tasks(local)), "a local run has other tasks"
    assert set(tasks(ir)) <= set(task_titles(name)), "`vlmflow submit` prints them by their title"


@pytest.mark.parametrize("name", PIPELINES)
def test_a_step_gets_only_its_part_of_the_recipe(name: str, compiled: Documents) -> None:
    """KFP's cache then reruns only the steps that a change affects. The input is traced from the step to `plan`."""
    ir, _ = compiled[name]
    components = {label: part["dag"]["tasks"] for label, part in ir["components"].items() if "dag" in part}
    for label, task in tasks(ir).items():
        step = label.rstrip("-0123456789")
        given = task["inputs"]["parameters"] if "inputs" in task else {}
        if "recipe" not in given or step in ("plan", "register", "report"):
            continue
        section = given["section"]["runtimeValue"]["constant"] if "section" in given else step
        default = ir["components"][task["componentRef"]["name"]]["inputDefinitions"]["parameters"].get("section")
        section = section if "section" in given or not default else default["defaultValue"]
        source = given["recipe"]
        if "componentInputParameter" in source:  # inside a loop
            [loop] = [one for inner in components.values() for one in inner.values() if "parameterIterator" in one]
            source = loop["inputs"]["parameters"][source["componentInputParameter"]]
        assert source["taskOutputParameter"] == {"producerTask": "plan", "outputParameterKey": section}, label


def test_a_sweep_trains_in_a_loop_over_the_listed_settings(compiled: Documents) -> None:
    ir, _ = compiled["sweep"]
    around = ir["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    [(label, loop)] = [(label, task) for label, task in around.items() if "parameterIterator" in task]
    listed = loop["inputs"]["parameters"][loop["parameterIterator"]["items"]["inputParameter"]]
    assert listed["taskOutputParameter"]["producerTask"] == "sweep"
    inside = ir["components"][f"comp-{label}"]["dag"]["tasks"]
    assert set(inside) == {"pretrain", "evaluate"}
    item = loop["parameterIterator"]["itemInput"]
    assert inside["pretrain"]["inputs"]["parameters"]["change"] == {"componentInputParameter": item}


def test_compilation_is_deterministic(texts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, image in IMAGES.items():
        monkeypatch.setenv(name, image)
    assert flow.compile(load_pipeline("end-to-end"), load()) == texts["end-to-end"], "differs between two processes"


@pytest.mark.parametrize(
    ("resources", "seconds"),
    [
        ({"retries": 1, "timeout_minutes": 240}, 2 * (240 * 60 + 3600) + 30),
        ({"retries": 3, "timeout_minutes": 60, "backoff": "10s"}, 4 * (3600 + 3600) + 10 + 20 + 40),
        ({"retries": 1}, 10 * 365 * 86400),  # attempts without a limit
    ],
)
def test_the_time_for_all_attempts(resources: dict[str, Any], seconds: int) -> None:
    assert StepResources(**resources).retry_seconds == seconds


def write_placement(tmp_path: Path, text: str) -> Path:
    (tmp_path / "placement.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "placement.yaml"


def test_a_custom_placement(tmp_path: Path) -> None:
    """GPUs, tolerations, node labels, another image, shared memory; mappings are merged with those of the defaults."""
    file = write_placement(
        tmp_path,
        """
        defaults: {memory: 2G, node: {pool: cpu}, secrets: {s3: {key: AWS_ACCESS_KEY_ID}}}
        steps:
          align:
            image: elsewhere/train:1
            gpus: 2
            gpu: amd.com/gpu
            cpu: 1500m
            shared_memory: 2Gi
            node: {accelerator: h100}
            tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}]
            secrets: {hub: {token: HF_TOKEN}}
            environment: {VLMFLOW_SHARED: /shared}
            volumes: {datasets: /shared}
            retries: 2
            backoff: 60s
        """,
    )
    ir, platform = parse(flow.compile(load_pipeline("end-to-end"), load(file)))
    container = executors(ir)["exec-align"]
    assert container["image"] == "elsewhere/train:1"
    accelerator = container["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("amd.com/gpu", "2")
    assert container["resources"]["resourceCpuLimit"] == "1500m"
    pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-align"]
    assert pod["nodeSelector"]["labels"] == {"pool": "cpu", "accelerator": "h100"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert [secret["secretName"] for secret in pod["secretAsEnv"]] == ["s3", "hub"]
    assert pod["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
    assert pod["pvcMount"][0]["mountPath"] == "/shared"
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert variables.pop("VLMFLOW_SHARED") == "/shared"
    assert variables.pop("VLMFLOW_IMAGE") == "elsewhere/train:1"
    assert variables == {f"VLMFLOW_{target.upper()}_IMAGE": image_name(target) for target in ("step", "train", "serve")}
    assert "activeDeadlineSeconds" not in pod
    retry = tasks(ir)["align"]["retryPolicy"]
    assert (retry["maxRetryCount"], retry["backoffDuration"], retry["backoffFactor"]) == (2, "60s", 2.0)
    assert executors(ir)["exec-ocr"]["resources"]["resourceMemoryLimit"] == "2G"
    assert "accelerator" not in executors(ir)["exec-ocr"]["resources"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("steps: {pretrian: {gpus: 1}}", ("steps.pretrian", "'pretrain'")),
        ("steps: {align: {memmory: 4Gi}}", ("steps.align.memmory", "'memory'")),
        ("defaults: {memory: 4Gb}", ("defaults", "'4Gb'", "4Gi")),
        ("defaults: {cpu: two}", ("defaults", "'two'", "500m")),
        ("steps: {ocr: {backoff: 1m}}", ("steps.ocr", "'1m'", "30s")),
        ("steps: {ocr: {gpus: some}}", ("steps.ocr.gpus", "'some'", "int")),
        ("steps: {ocr: {gpus: -1}}", ("steps.ocr.gpus", "at least 0", "-1")),
        ("steps: {ocr: 4Gi}", ("steps.ocr", "'4Gi'", "mapping")),
        ("default: {}", ("default", "`defaults`")),
    ],
)
def test_an_error_in_a_placement_names_the_key_and_the_value(text: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    file = write_placement(tmp_path, text + "\n")
    with pytest.raises(RecipeError) as error:
        load(file)
    for part in (str(file), *parts):
        assert part in str(error.value)


def test_a_missing_placement_file(tmp_path: Path) -> None:
    done = vlmflow(tmp_path, "compile", "--placement", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "ir"))
    assert done.returncode == 2 and "none.yaml" in done.stderr and not (tmp_path / "ir").exists()
