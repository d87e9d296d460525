"""Every family of the zoo passes through the same steps: it is pretrained, evaluated, and served by its abilities."""

import asyncio
import base64
import inspect
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from components.ingest.config import IngestConfig, ScenesConfig
from components.ingest.ingestion import ingest
from components.instructions.config import InstructionConfig
from components.instructions.conversations import build_conversations
from components.plan.sections import check
from models.zoo import ABILITIES, ZOO
from pipelines.pretraining import control_variants
from pipelines.zoo import measure
from tests.conftest import vlmflow
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config import recipes
from vlmflow.errors import RecipeError
from vlmflow.evaluation.config import EvaluateConfig
from vlmflow.evaluation.evaluate import evaluate
from vlmflow.runtime.code_hash import ROOT
from vlmflow.serving.predictor import Predictor
from vlmflow.training.pretraining.config import PretrainConfig
from vlmflow.training.pretraining.training import pretrain

RECIPES = {path.stem: recipes.parse(path) for path in sorted((ROOT / "recipes" / "zoo").glob("*.yaml"))}
LARGE = {path.stem: recipes.parse(path) for path in sorted((ROOT / "recipes" / "zoo" / "large").glob("*.yaml"))}
LANGUAGE_MODELS = {"tiny-vlm", "idefics3"}  # trained by the steps after pretraining


def test_every_family_that_pretrain_trains_alone_has_two_recipes() -> None:
    expected = set(ZOO) - LANGUAGE_MODELS - {"tiny-dual-encoder"}
    assert set(RECIPES) == expected and set(LARGE) == expected
    assert all(family.abilities <= set(ABILITIES) for family in ZOO.values())


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_and_use_the_same_pairs(name: str) -> None:
    for sections in (RECIPES[name], LARGE[name]):
        check(sections)
        assert sections["pretrain"]["family"] == name
    own, others = (
        {**recipe["ingest"]["scenes"], "test": 0, "curate": recipe["curate"], "instructions": recipe["instructions"]}
        for recipe in (RECIPES[name], RECIPES["clip"])
    )
    assert own == others, "all families must train on the same pairs"
    variants = control_variants(RECIPES[name] | {"pretrain": dict(RECIPES[name]["pretrain"])}, 60.0)
    check(variants)
    assert variants["untrained"]["training"]["max_steps"] == 0 and variants["shuffled"]["shuffle_pairs"]
    assert variants["trained"]["training"]["seconds"] == 60.0


@pytest.mark.parametrize("name", LARGE)
def test_models_at_the_papers_scale_are_measured_without_allocating_weights(name: str) -> None:
    found = measure(name, large=True)
    assert found["parameters"] > 2e7 and found["learned"] > 0 and found["training_gib"] > found["weights_gib"] > 0


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clean = ScenesConfig(web=48, boxes=0, signs=0, classes=96, test=12, shuffled=0, duplicates=0, junk=0, bad=0)
    path = tmp_path_factory.mktemp("zoo") / "pairs"
    ingest(IngestConfig(source="scenes", scenes=clean), path)
    return path


@pytest.fixture(scope="module")
def questions(pairs: Path) -> Path:
    build_conversations(pairs, pairs.parent / "questions", InstructionConfig())
    return pairs.parent / "questions"


EXPECTED = {
    "retrieval": {"retrieval"},
    "classify": {"zero-shot"},
    "image_text_matching": {"image-text matching"},
    "fill_mask": {"fill-mask"},
    "reconstruct": {"reconstruction"},
    "features": {"linear probe", "nearest neighbours"},
}


@pytest.mark.parametrize("name", ZOO)
def test_an_unknown_size_is_named_in_the_error(name: str) -> None:
    with pytest.raises(RecipeError, match=r"^pretrain\.model\b.*widht"):
        recipes.call(ZOO[name].build, ["a text"], values={"widht": 3}, where="pretrain.model")


@pytest.mark.parametrize("name", ZOO)
def test_sizes_read_from_the_source_are_those_of_the_signature(name: str) -> None:
    def sizes_of(builder: Callable[..., Any]) -> set[str]:
        return {p.name for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY}

    assert ZOO[name].build_sizes == sizes_of(ZOO[name].build)
    if "chat" in ZOO[name].abilities:
        assert ZOO[name].from_dual_encoder_sizes == sizes_of(ZOO[name].from_dual_encoder)


@pytest.mark.parametrize("name", RECIPES)
def test_a_family_is_pretrained_evaluated_and_served(name: str, pairs: Path, questions: Path, tmp_path: Path) -> None:
    values = {**RECIPES[name]["pretrain"]}
    values["training"] = {**values["training"], "max_steps": 2, "batch_size": 8, "warmup_steps": 1, "processes": 1}
    section = recipes.load(PretrainConfig, {"pretrain": values}, "pretrain")
    pretrain(pairs=pairs, conversations=questions, out=tmp_path / "model", section=section)
    pretrain(pairs=pairs, conversations=questions, out=tmp_path / "again", section=section)
    assert Checkpoint(tmp_path / "model").hash == Checkpoint(tmp_path / "again").hash, (
        "equal seeds must give equal weights"
    )

    config = EvaluateConfig(limit=12, control_questions=6, resamples=100, held_out_loss=True, loss_batch=6)
    scores = evaluate(
        model=tmp_path / "model", pairs=pairs, conversations=questions, out=tmp_path / "scores", stage="pretrain",
        section=config,
    )  # fmt: skip
    abilities = ZOO[name].abilities
    expected = set().union(*(EXPECTED[ability] for ability in abilities if ability in EXPECTED)) | {"held-out loss"}
    assert set(scores["capabilities"]) == expected
    assert scores["capabilities"]["held-out loss"]["n"] == 2

    predictor = Predictor(name, tmp_path / "model")
    predictor.load()
    _check_predictions(predictor, abilities)


def _check_predictions(predictor: Predictor, abilities: frozenset[str]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), "red").save(buffer, "PNG")
    image = {"b64": base64.b64encode(buffer.getvalue()).decode()}
    mask = getattr(predictor.loaded.tokenizer, "mask_token", None)
    image_input = {"image": image} if predictor.loaded.image_processor is not None else {}
    requests: list[tuple[set[str], dict[str, Any], str]] = [
        ({"embed", "features"}, {"image": image}, "embedding"),
        ({"embed"}, {"text": "a red circle"}, "embedding"),
        ({"classify"}, {"image": image, "labels": ["red circle", "blue star"]}, "probabilities"),
        ({"image_text_matching", "retrieval"}, {"image": image, "text": "a red circle"}, "score"),
        ({"fill_mask"}, {**image_input, "text": f"a {mask} circle"}, "words"),
        ({"reconstruct"}, {"image": image, "reconstruct": 0}, "image"),
    ]
    supported = [(instance, key) for needed, instance, key in requests if abilities & needed]
    answers = asyncio.run(predictor.predict({"instances": [instance for instance, _ in supported]}))["predictions"]
    for (_, key), answer in zip(supported, answers, strict=True):
        assert answer[key], answer


def test_zoo_check_prints_and_writes_the_results(tmp_path: Path) -> None:
    small = ["ingest.scenes.web=160", "ingest.scenes.boxes=0", "ingest.scenes.classes=48", "ingest.scenes.test=64",
             "pretrain.training.max_steps=3", "pretrain.training.batch_size=16", "evaluate.resamples=100",
             "evaluate.loss_batch=16"]  # fmt: skip
    options = [part for value in small for part in ("--set", value)]
    completed = vlmflow(tmp_path, "zoo", "check", "mask-vlm", "--out", str(tmp_path / "out"), *options)
    assert completed.returncode == 0, completed.stderr[-3000:]
    found = json.loads(completed.stdout)
    assert found == json.loads((tmp_path / "out" / "mask-vlm.json").read_text())
    assert found["family"] == "mask-vlm" and found["steps"] == 3 and set(found["core_seconds"]) == {
        "untrained", "trained", "shuffled"
    }  # fmt: skip
    assert {"retrieval", "image-text matching", "fill-mask", "reconstruction"} <= set(found["capabilities"])
    with Image.open(tmp_path / "out" / "mask-vlm.png") as figure:
        assert figure.width > 300
    unknown = vlmflow(tmp_path, "zoo", "check", "clop")
    assert unknown.returncode == 2 and "the nearest is 'clip'" in unknown.stderr


def test_a_zoo_recipe_runs_up_to_the_endpoint(tmp_path: Path) -> None:
    small = ["ingest.scenes.web=160", "ingest.scenes.boxes=0", "ingest.scenes.classes=96", "ingest.scenes.test=48",
             "pretrain.training.max_steps=2", "pretrain.training.batch_size=16", "evaluate.resamples=100",
             "evaluate.held_out_loss=false"]  # fmt: skip
    completed = vlmflow(
        tmp_path, "run", "recipes/zoo/mae.yaml", *[part for value in small for part in ("--set", value)]
    )
    assert completed.returncode == 0, completed.stdout[-2000:] + completed.stderr[-2000:]
    folder = tmp_path / "latest"
    transcript = json.loads((folder / "deploy" / "transcript" / "transcript.json").read_text())
    assert transcript["exchanges"][-1]["response"]["predictions"][0]["embedding"]
    assert len(Dataset(folder / "curate" / "curated")) > 100
    assert "reconstruction" in json.loads((folder / "summary.json").read_text())["results"]["stages"]["pretrain"]
