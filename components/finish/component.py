from kfp import dsl

from vlmflow.runtime.step import step


@step(tracking_optional=True)
def finish(pipeline: str, status: dsl.PipelineTaskFinalStatus, summary: dsl.Output[dsl.Markdown]):
    """Close the run of a pipeline on a cluster: say in MLflow, in the UI and to a webhook what became of it."""
    import os
    from pathlib import Path

    from components.finish.exit_handler import Ending, tell

    ending = Ending(pipeline, status.state, status.error_message or "")
    tell(ending, os.environ.get("VLMFLOW_KFP_RUN", ""), Path(summary.path))
