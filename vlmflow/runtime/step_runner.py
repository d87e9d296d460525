"""Run one step; the command of a step's container, and of a step's process on this machine.

    python -m vlmflow.runtime.step_runner kfp.dsl.executor_main --module components.curate.component \\
        --function curate --executor_input '{...}'

KFP's executor calls the function with its artifacts. The runner adds what every step needs. In a run on this machine
(VLMFLOW_RUN is set): an unchanged step is taken from the step cache, outputs are written to a staging folder that is
renamed at the end, and the step's record is written into the run's folder. In a pod of a cluster: KFP keeps the cache
and the outputs, and the record goes to MLflow. In both: a user's mistake is one line and exit code 2.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from vlmflow.errors import EXIT_CODE, VlmflowError
from vlmflow.runtime.local_step import LocalStep
from vlmflow.runtime.process import configure_logging, limit_threads
from vlmflow.runtime.space import space_errors
from vlmflow.runtime.step_task import StepTask
from vlmflow.runtime.traits import add_trait_arguments, traits_from_namespace


def main(arguments: list[str], *, use_cache: bool = True) -> int:
    """Run the step of a command line; returns the exit code.

    Args:
        use_cache: whether the step may be taken from the step cache; False if the caller has tried that.
    """
    task = parse_task(arguments)
    configure_logging()
    limit_threads()
    run_folder = os.environ.get("VLMFLOW_RUN")
    try:
        if run_folder:
            step = LocalStep(task, Path(run_folder))
            with step.failure_recorded(), space_errors(task.folder):
                if not (use_cache and step.restore()):
                    step.run()
            return 0
        from vlmflow.runtime.pod_step import run_in_pod

        run_in_pod(task)
    except VlmflowError as error:
        print(f"error: {task.function}: {error}", file=sys.stderr)  # noqa: T201  the one line that the user reads
        return EXIT_CODE
    return 0


def parse_task(arguments: list[str]) -> StepTask:
    """Return the task of a command line."""
    parser = argparse.ArgumentParser(prog="python -m vlmflow.runtime.step_runner", allow_abbrev=False)
    parser.add_argument("executor", choices=["kfp.dsl.executor_main"])
    parser.add_argument("--module", required=True)
    parser.add_argument("--function", required=True)
    parser.add_argument("--executor_input", required=True)
    add_trait_arguments(parser)
    parsed = parser.parse_args(arguments)
    executor_input = json.loads(parsed.executor_input)
    return StepTask(parsed.module, parsed.function, executor_input, traits_from_namespace(parsed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
