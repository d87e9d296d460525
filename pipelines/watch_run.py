"""A run on Kubeflow, followed from here: a line for each change, and what it failed of."""

import time
from datetime import datetime
from typing import Any

from rich.console import Console

from pipelines.catalog import load_pipeline
from pipelines.kubeflow import Server
from vlmflow.errors import ServiceError

ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}
PATIENCE = 6  # answers in a row that may be missing


def follow(server: Server, client: Any, run_id: str, name: str, console: Console, pause: float) -> bool:
    """Print a line for each task whose state changes, until the run has ended; says whether it succeeded.

    Raises:
        ServiceError: the server has been silent for long.
    """
    titles = {key: task.task_info.name for key, task in load_pipeline(name).pipeline_spec.root.dag.tasks.items()}
    titles["finish"] = "finish"
    seen: dict[str, str] = {}
    silent = 0
    while True:
        try:
            with server.answering():
                run = client.get_run(run_id)
            silent = 0
        except ServiceError:
            silent += 1
            if silent >= PATIENCE:
                raise
            time.sleep(pause)
            continue
        details = (run.run_details.task_details if run.run_details else None) or []
        # Beside the tasks there are KFP's own nodes: drivers, executors, the exit handler's group.
        tasks = [task for task in details if task.display_name in titles]
        for task in tasks:
            if task.state and seen.get(task.task_id) != task.state:
                seen[task.task_id] = task.state
                console.print(f"{datetime.now():%H:%M:%S} {titles[task.display_name]}: {task.state.lower()}")
        if run.state in ENDED:
            break
        time.sleep(pause)
    if run.state == "SUCCEEDED":
        console.print("[green]✓[/] succeeded")
        return True
    for task in tasks:
        if task.state == "FAILED":
            console.print(f"error: {titles[task.display_name]}: {_message(task, details)}", markup=False)
    said = run.error.message if run.error else None
    console.print(f"[red]✗[/] {run.state.lower()}" + (f": {said}" if said else ""))
    return False


def _message(task: Any, details: list[Any]) -> str:
    """What a task says of its failure: itself, or the nodes below it."""
    by_id = {each.task_id: each for each in details}
    waiting = [task]
    while waiting:
        here = waiting.pop(0)
        if here.error and here.error.message:
            return here.error.message
        waiting += [by_id[child.task_id] for child in here.child_tasks or [] if child.task_id in by_id]
    return "no reason given; its log in the UI has it"
