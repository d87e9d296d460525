from kfp import dsl

from vlmflow.runtime.step import step


@step(tracking_optional=True)
def finish(pipeline: str, status: dsl.PipelineTaskFinalStatus, summary: dsl.Output[dsl.Markdown]):
    """Record the final status of a pipeline's run on a cluster in MLflow, in the UI and with a webhook."""
    import os
    from pathlib import Path

    from components.finish.exit_handler import final_status, report_run_status

    kfp_run = os.environ.get("VLMFLOW_KFP_RUN", "")
    run_status = final_status(pipeline, status.state, status.error_message or "", kfp_run)
    report_run_status(run_status, kfp_run, Path(summary.path))
