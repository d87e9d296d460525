"""Wait for a run on Kubeflow: print each change of a task's state, and why the run failed."""

import time
from datetime import datetime
from typing import Any

from rich.console import Console

from pipelines.catalog import load_pipeline
from pipelines.kubeflow import Server
from vlmflow.errors import ServiceError

ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}
MAX_MISSED_POLLS = 6  # in a row, before the server counts as unreachable


def wait_for_run(server: Server, client: Any, run_id: str, name: str, console: Console, pause: float) -> bool:
    """Print each task's state changes until the run ends; return whether it succeeded.

    Raises:
        ServiceError: the server did not answer several polls in a row.
    """
    titles = task_titles(name)
    seen: dict[str, str] = {}
    missed = 0
    while True:
        try:
            with server.translate_errors():
                run = client.get_run(run_id)
            missed = 0
        except ServiceError:
            missed += 1
            if missed >= MAX_MISSED_POLLS:
                raise
            time.sleep(pause)
            continue
        details = (run.run_details.task_details if run.run_details else None) or []
        # The details also list KFP's own nodes: drivers, executors, the exit handler's group.
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
    message = run.error.message if run.error else None
    console.print(f"[red]✗[/] {run.state.lower()}" + (f": {message}" if message else ""))
    return False


def task_titles(name: str) -> dict[str, str]:
    """Return the title of each task of a pipeline on a cluster, also of those in loops, by KFP's name of it."""
    spec = load_pipeline(name).pipeline_spec
    dags = [spec.root.dag, *(component.dag for component in spec.components.values())]
    titles = {key: task.task_info.name for dag in dags for key, task in dag.tasks.items()}
    return {"plan": "plan", **titles, "finish": "finish"}


def _message(task: Any, details: list[Any]) -> str:
    """Return the error message of a failed task or of the first node below it that has one."""
    by_id = {each.task_id: each for each in details}
    queue = [task]
    while queue:
        node = queue.pop(0)
        if node.error and node.error.message:
            return node.error.message
        queue += [by_id[child.task_id] for child in node.child_tasks or [] if child.task_id in by_id]
    return "no message; see its log in the UI"
