"""Monitor the champion: evaluate it on fresh data and compare with its scores at registration."""

from components.champion.component import champion
from components.curate.component import curate
from components.evaluate.component import evaluate
from components.fetch.component import fetch
from components.ingest.component import ingest
from components.instructions.component import instructions
from components.monitor.component import monitor
from components.validate.component import validate
from pipelines.flow import default_recipe, flow


def evaluate_champion(pairs, questions, recipe):
    """Evaluate the champion and compare with its registered scores; common to both pipelines."""
    registered = champion(recipe=recipe)
    measured = evaluate(
        model=registered.outputs["model"],
        pairs=pairs,
        conversations=questions,
        stage="champion",
        recipe=recipe,
        earlier=registered.outputs["scores"],
    )
    monitor(
        scores=measured.set_display_name("evaluate champion").outputs["scores"],
        registered=registered.outputs["scores"],
        version=registered.outputs["version"],
        recipe=recipe,
    )


@flow
def monitor_champion(recipe: str = default_recipe("monitor")):
    """Check on fresh pairs that the champion has not become worse since its registration; meant to recur.

    1. Ingest today's pairs and validate them.
    2. Curate them, and validate the kept pairs; build conversations for each task.
    3. Load the champion from the registry, with its scores at registration.
    4. Evaluate it on the held-out pairs.
    5. Compare: the run fails if a capability became worse, and names it.

    Args:
        recipe: the configuration of the run, as YAML: a section for each step. `champion.name` is the registered model,
            `ingest` reads today's pairs, and `monitor` lists the protected capabilities. The default is
            recipes/monitor.yaml.
    """
    raw = (
        ingest(recipe=recipe).set_caching_options(False).outputs["raw"]
    )  # the same source may contain other pairs tomorrow
    checked = validate(data=raw, recipe=recipe, section="validate_raw")
    pairs = curate(raw=raw, recipe=recipe).after(checked).outputs["curated"]
    kept = validate(data=pairs, recipe=recipe, section="validate_curated")
    questions = instructions(pairs=pairs, recipe=recipe).after(kept).outputs["conversations"]
    evaluate_champion(pairs, questions, recipe)


@flow
def monitor_champion_revision(recipe: str = default_recipe("monitor"), data_rev: str = "HEAD"):
    """Check on the data of a DVC revision that the champion has not become worse; meant to recur.

    1. Fetch curated pairs and conversations from DVC.
    2. Continue as `monitor-champion`: load the champion, evaluate, compare.

    Args:
        recipe: the configuration of the run, as YAML: a section for each step. `fetch.repo` is the address of the
            data's repository, which the cluster must be able to read. The default is recipes/monitor.yaml.
        data_rev: a commit, tag or branch of that repository; HEAD is the tip of its default branch.
    """
    data = fetch(recipe=recipe, data_rev=data_rev).outputs
    evaluate_champion(data["curated"], data["conversations"], recipe)
