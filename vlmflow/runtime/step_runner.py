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
from vlmflow.runtime.prefork_client import PREFORK_ADDRESS, run_in_prefork
from vlmflow.runtime.process import configure_logging, limit_threads
from vlmflow.runtime.step_task import StepTask
from vlmflow.runtime.traits import add_trait_arguments, traits_from_namespace


def main(arguments: list[str]) -> int:
    """Run the step of a command line; returns the exit code."""
    task = _parse(arguments)
    configure_logging()
    limit_threads()
    run_folder = os.environ.get("VLMFLOW_RUN")
    try:
        if run_folder:
            return _run_locally(LocalStep(task, Path(run_folder)), arguments)
        from vlmflow.runtime.pod_step import run_in_pod

        run_in_pod(task)
    except VlmflowError as error:
        print(f"error: {task.function}: {error}", file=sys.stderr)  # noqa: T201  the one line that the user reads
        return EXIT_CODE
    return 0


def _parse(arguments: list[str]) -> StepTask:
    parser = argparse.ArgumentParser(prog="python -m vlmflow.runtime.step_runner", allow_abbrev=False)
    parser.add_argument("executor", choices=["kfp.dsl.executor_main"])
    parser.add_argument("--module", required=True)
    parser.add_argument("--function", required=True)
    parser.add_argument("--executor_input", required=True)
    add_trait_arguments(parser)
    parsed = parser.parse_args(arguments)
    executor_input = json.loads(parsed.executor_input)
    return StepTask(parsed.module, parsed.function, executor_input, traits_from_namespace(parsed))


def _run_locally(step: LocalStep, arguments: list[str]) -> int:
    """Restore the step from the cache, or run it in a fork of the preforked process, or run it here."""
    address = os.environ.get(PREFORK_ADDRESS)
    try:
        # A query of the registry is left to the fork, which has mlflow imported already.
        if not (address and step.task.traits.uses_registry) and step.restore():
            return 0
        if address and (code := run_in_prefork(address, arguments)) is not None:
            return code
        step.run()
    except VlmflowError as error:
        step.write_failure(error=str(error), users=True)
        raise
    except BaseException as error:
        step.write_failure(error=f"{type(error).__name__}: {error}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
