"""The champion, looked at again: does it still do on today's data what it did when it was registered?"""

from components.champion.component import champion
from components.curate.component import curate
from components.evaluate.component import evaluate
from components.fetch.component import fetch
from components.ingest.component import ingest
from components.instructions.component import instructions
from components.monitor.component import monitor
from components.validate.component import validate
from pipelines.flow import flow, shipped


def evaluate_champion(pairs, questions, recipe):
    """What follows once there are data: the champion is evaluated on them, and compared with itself."""
    held = champion(recipe=recipe)
    measured = evaluate(
        model=held.outputs["model"], pairs=pairs, conversations=questions, stage="champion", recipe=recipe
    )
    monitor(
        scores=measured.set_display_name("evaluate champion").outputs["scores"],
        registered=held.outputs["scores"],
        version=held.outputs["version"],
        recipe=recipe,
    )


@flow
def monitor_champion(recipe: str = shipped("monitor")):
    """Whether the champion still does on fresh pairs what it did when it was registered; made to recur.

    1. Ingest pairs, as they are today, and validate them.
    2. Curate them, and validate what is left; make the task sets.
    3. Take the champion out of the registry, with the scores that it was registered with.
    4. Evaluate it on the held-out pairs.
    5. Compare: a capability that fell stops the run and is named; else all is well.

    Args:
        recipe: every value of the run, as YAML: a section for each step. `champion.name` is the registered model,
            `ingest` says where today's pairs are, and `monitor` what may not fall. The default is recipes/monitor.yaml.
    """
    raw = ingest(recipe=recipe).set_caching_options(False).outputs["raw"]  # the same place holds other pairs tomorrow
    checked = validate(data=raw, recipe=recipe, section="validate_raw")
    pairs = curate(raw=raw, recipe=recipe).after(checked).outputs["curated"]
    kept = validate(data=pairs, recipe=recipe, section="validate_curated")
    questions = instructions(pairs=pairs, recipe=recipe).after(kept).outputs["conversations"]
    evaluate_champion(pairs, questions, recipe)


@flow
def monitor_champion_revision(recipe: str = shipped("monitor"), data_rev: str = "HEAD"):
    """Whether the champion does on the data of a revision what it did when it was registered; made to recur.

    1. Fetch curated pairs and task sets from DVC.
    2. From there on as `monitor-champion`: the champion, its evaluation, the comparison.

    Args:
        recipe: every value of the run, as YAML: a section for each step. `fetch.repo` says where the data are, an
            address that the cluster can read. The default is recipes/monitor.yaml.
        data_rev: a commit, a tag or a branch of that repository; HEAD is its default branch as it is now.
    """
    data = fetch(recipe=recipe, data_rev=data_rev).outputs
    evaluate_champion(data["curated"], data["conversations"], recipe)
