"""Report the final status of a pipeline's run on a cluster: to MLflow, to Kubeflow's UI and to a webhook."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import httpx

from components.finish import workflow
from vlmflow.errors import ServiceError
from vlmflow.tracking import mlflow_store, step_run

logger = logging.getLogger(__name__)

WEBHOOK = "VLMFLOW_WEBHOOK"
# KFP's state → MLflow's status; any other is FAILED. KFP's SDK and server spell the states differently.
MLFLOW_STATUS = {
    **dict.fromkeys(("SUCCEEDED", "COMPLETE", "CACHED", "SKIPPED"), "FINISHED"),
    **dict.fromkeys(("CANCELLED", "CANCELED"), "KILLED"),
}


@dataclass(frozen=True)
class RunStatus:
    """The final status of a run.

    pipeline: its name.
    state: KFP's state.
    error: the error message, or "".
    """

    pipeline: str
    state: str
    error: str

    @property
    def status(self) -> str:
        """The status in MLflow's terms."""
        return MLFLOW_STATUS.get(self.state, "FAILED")


@dataclass(frozen=True)
class StepSummary:
    """A step, from its run in MLflow."""

    label: str
    status: str
    seconds: float
    error: str
    scores: dict[str, float]


def final_status(pipeline: str, state: str, error: str, kfp_run: str) -> RunStatus:
    """Return the final status of a run: from its workflow, or else the state and error that KFP has passed."""
    try:
        found = workflow.find_workflow(kfp_run) if kfp_run else None
        result = workflow.outcome(found) if found else None
        reason = "its workflow does not say"
    except ServiceError as problem:
        result, reason = None, str(problem)
    if result:
        return RunStatus(pipeline, result[0], "" if result[0] == "SUCCEEDED" else error or result[1])
    if state not in MLFLOW_STATUS and state != "FAILED":
        logger.warning("KFP passed the state %s, which is not final; %s", state, reason)
        error = error or f"unknown: KFP passed the state {state}, and its workflow cannot be read: {reason}"
    return RunStatus(pipeline, state, error)


def report_run_status(run_status: RunStatus, kfp_run: str, summary: Path) -> None:
    """End the pipeline's MLflow run, write the summary for the UI, and post its headline to VLMFLOW_WEBHOOK.

    Raises:
        ServiceError: MLflow is unreachable; raised after the summary is written and the webhook is called.
    """
    steps: list[StepSummary] = []
    mlflow_error: ServiceError | None = None
    if os.environ.get("MLFLOW_TRACKING_URI") and mlflow_store.enabled():
        try:
            steps = close_mlflow_run(run_status, kfp_run)
        except ServiceError as error:
            mlflow_error = error
    else:
        logger.info("MLFLOW_TRACKING_URI is not set: there is no MLflow run to end")
    summary.write_text(markdown(run_status, steps), encoding="utf-8")
    if address := os.environ.get(WEBHOOK):
        post_to_webhook(address, f"vlmflow: {headline(run_status, steps)} (KFP run {kfp_run})")
    if mlflow_error:
        raise mlflow_error


def close_mlflow_run(run_status: RunStatus, kfp_run: str) -> list[StepSummary]:
    """End the MLflow run of a KFP run, with the error if it failed; returns its steps, oldest first."""
    parent = step_run.find_or_create_pipeline_run(kfp_run)
    client = mlflow_store.client()
    with mlflow_store.service_errors():
        query = f"tags.`{step_run.KFP_RUN}` = '{kfp_run}' and tags.`vlmflow.step` != 'finish'"
        runs = client.search_runs(mlflow_store.experiment_ids(client), query, order_by=["attributes.start_time"])
        steps = [
            StepSummary(
                run.info.run_name or "",
                run.data.tags.get("status", "unknown"),
                run.data.metrics.get("seconds", 0.0),
                run.data.tags.get("error", ""),
                {k: v for k, v in run.data.metrics.items() if run.data.tags.get("vlmflow.step") == "evaluate"},
            )
            for run in runs
        ]
        client.set_tag(parent, "pipeline", run_status.pipeline)
        if run_status.status == "FAILED":
            client.set_tag(parent, "error", headline(run_status, steps)[:5000])
        client.set_terminated(parent, run_status.status)
    return steps


def failed_steps(steps: list[StepSummary]) -> list[StepSummary]:
    """Return the steps that failed and did not succeed in a retry."""
    last = {step.label: step for step in steps}
    return [step for step in last.values() if step.status == "failed"]


def headline(run_status: RunStatus, steps: list[StepSummary]) -> str:
    """Return one line with the pipeline, its final status, and the failed steps with their errors."""
    if run_status.status != "FAILED":
        return f"{run_status.pipeline} {'was cancelled' if run_status.status == 'KILLED' else 'has finished'}"
    reasons = (
        "; ".join(f"{step.label}: {step.error}" for step in failed_steps(steps))
        or run_status.error
        or "no reason given"
    )
    return f"{run_status.pipeline} failed: {reasons}"


def markdown(run_status: RunStatus, steps: list[StepSummary]) -> str:
    """Return the headline, and a table of the steps with the scores of evaluations."""
    lines = [f"**{headline(run_status, steps)}**", ""]
    if steps:
        lines += ["| step | status | seconds | scores |", "|---|---|---|---|"]
        lines += [f"| {step.label} | {step.status} | {step.seconds:.0f} | {_scores(step)} |" for step in steps]
    return "\n".join(lines) + "\n"


def _scores(step: StepSummary) -> str:
    return ", ".join(
        f"{name} {value:.3f}" for name, value in sorted(step.scores.items()) if name not in step_run.STEP_METRICS
    )


def post_to_webhook(address: str, text: str) -> None:
    """Send `{"text": …}`, the format of chat services. The URL is a secret, so error messages omit it."""
    try:
        httpx.post(address, json={"text": text}, timeout=10).raise_for_status()
    except httpx.HTTPStatusError as error:
        logger.warning("%s: HTTP status %d; the message was not delivered", WEBHOOK, error.response.status_code)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        logger.warning("%s: %s; the message was not delivered", WEBHOOK, type(error).__name__)
