"""On a cluster a recipe is checked before anything runs, and divided, so that a change runs what it concerns."""

import json
from pathlib import Path

import yaml

from components.plan.sections import SECTIONS
from tests.conftest import executor_input
from tests.runtime.test_step_in_pod import run_pod
from vlmflow.config import recipes as recipes
from vlmflow.runtime.code_hash import ROOT


def divided(place: Path, text: str) -> dict[str, str]:
    done = run_pod(
        place, "plan", executor_input(place / "plan", {"recipe": text}, {}, []), "run-1", MLFLOW_TRACKING_URI=""
    )
    assert done.returncode == 0, done.stderr
    return json.loads((place / "plan" / "executor_output.json").read_text())["parameterValues"]


def test_a_change_is_in_the_parts_that_it_concerns(tmp_path: Path) -> None:
    sections = recipes.parse(str(ROOT / "recipes" / "mini.yaml"))
    parts = divided(tmp_path / "one", recipes.dump(sections))
    assert set(parts) == set(SECTIONS)
    assert yaml.safe_load(parts["curate"]) == {"seed": sections["seed"], "curate": sections["curate"]}
    assert yaml.safe_load(parts["data_ablation"]) == {"seed": sections["seed"]}, "what is absent stays so"
    changed = divided(tmp_path / "other", recipes.dump(recipes.override(sections, ["evaluate.limit=7"])))
    assert {name for name in parts if parts[name] != changed[name]} == {"evaluate", "gate"}


def test_a_wrong_recipe_stops_at_once(tmp_path: Path) -> None:
    given = executor_input(tmp_path / "plan", {"recipe": "curate: {min_sid: 3}\n"}, {}, [])
    done = run_pod(tmp_path, "plan", given, "run-1", MLFLOW_TRACKING_URI="")
    assert done.returncode == 2 and "error: plan: curate.min_sid: no such key" in done.stderr
