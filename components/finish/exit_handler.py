"""The end of a pipeline's run on a cluster, told where people look: MLflow, Kubeflow's UI and a webhook."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import httpx

from vlmflow.errors import ServiceError
from vlmflow.tracking import mlflow_store, step_run

logger = logging.getLogger(__name__)

WEBHOOK = "VLMFLOW_WEBHOOK"
# KFP's state → MLflow's; any other is FAILED. Its SDK and its server do not spell them alike.
CLOSED = {"SUCCEEDED": "FINISHED", "COMPLETE": "FINISHED", "CANCELLED": "KILLED", "CANCELED": "KILLED"}


@dataclass(frozen=True)
class Ending:
    """What KFP says of the run (2.14 and later do): its state, SUCCEEDED, FAILED or CANCELLED, and its error or ""."""

    pipeline: str
    state: str
    error: str

    @property
    def status(self) -> str:
        """MLflow's word for it."""
        return CLOSED.get(self.state, "FAILED")


@dataclass(frozen=True)
class Told:
    """A step as its run in MLflow tells of it."""

    label: str
    status: str
    seconds: float
    error: str
    scores: dict[str, float]


def tell(ending: Ending, kfp_run: str, summary: Path) -> None:
    """Close the pipeline's MLflow run, write the summary for the UI, and post it where VLMFLOW_WEBHOOK says.

    Raises:
        ServiceError: MLflow is out of reach; the UI and the webhook have been told all the same.
    """
    steps: list[Told] = []
    away: ServiceError | None = None
    if os.environ.get("MLFLOW_TRACKING_URI") and mlflow_store.enabled():
        try:
            steps = close(ending, kfp_run)
        except ServiceError as error:
            away = error
    else:
        logger.info("MLFLOW_TRACKING_URI is not set: nothing to close in MLflow")
    summary.write_text(markdown(ending, steps), encoding="utf-8")
    if address := os.environ.get(WEBHOOK):
        post(address, f"vlmflow: {headline(ending, steps)} (KFP run {kfp_run})")
    if away:
        raise away


def close(ending: Ending, kfp_run: str) -> list[Told]:
    """End the MLflow run of a KFP run, with the error if there was one; returns its steps, oldest first."""
    parent = step_run.find_or_create_pipeline_run(kfp_run)
    client = mlflow_store.client()
    with mlflow_store.service_errors():
        experiment = client.get_run(parent).info.experiment_id
        under = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`vlmflow.step` != 'finish'"
        runs = client.search_runs([experiment], under, order_by=["attributes.start_time"])
        steps = [
            Told(
                run.info.run_name or "",
                run.data.tags.get("status", "unknown"),
                run.data.metrics.get("seconds", 0.0),
                run.data.tags.get("error", ""),
                {k: v for k, v in run.data.metrics.items() if run.data.tags.get("vlmflow.step") == "evaluate"},
            )
            for run in runs
        ]
        client.set_tag(parent, "pipeline", ending.pipeline)
        if ending.status == "FAILED":
            client.set_tag(parent, "error", headline(ending, steps)[:5000])
        client.set_terminated(parent, ending.status)
    return steps


def failed(steps: list[Told]) -> list[Told]:
    """The steps that failed and did not succeed when they were tried again."""
    last = {step.label: step for step in steps}
    return [step for step in last.values() if step.status == "failed"]


def headline(ending: Ending, steps: list[Told]) -> str:
    """One line: the pipeline, how it ended, and which step failed of what."""
    if ending.status != "FAILED":
        return f"{ending.pipeline} {'was cancelled' if ending.status == 'KILLED' else 'has finished'}"
    reasons = "; ".join(f"{step.label}: {step.error}" for step in failed(steps)) or ending.error or "no reason given"
    return f"{ending.pipeline} failed: {reasons}"


def markdown(ending: Ending, steps: list[Told]) -> str:
    """The headline, and a row for each step, with what an evaluation found."""
    lines = [f"**{headline(ending, steps)}**", ""]
    if steps:
        lines += ["| step | status | seconds | scores |", "|---|---|---|---|"]
        lines += [f"| {step.label} | {step.status} | {step.seconds:.0f} | {_scores(step)} |" for step in steps]
    return "\n".join(lines) + "\n"


def _scores(step: Told) -> str:
    return ", ".join(
        f"{name} {value:.3f}" for name, value in sorted(step.scores.items()) if name not in step_run.STEP_METRICS
    )


def post(address: str, text: str) -> None:
    """Send `{"text": …}`, as chat services take it. The address is a secret: what goes wrong is told without it."""
    try:
        httpx.post(address, json={"text": text}, timeout=10).raise_for_status()
    except httpx.HTTPStatusError as error:
        logger.warning("%s: it answered %d; nobody was told there", WEBHOOK, error.response.status_code)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        logger.warning("%s: %s; nobody was told there", WEBHOOK, type(error).__name__)
