"""Built-in tasks, and how any task is found.

Importing this loads no data and no data library; each task does on first use.
"""

from __future__ import annotations

from fedkit.core.errors import TaskError
from fedkit.core.lookup import load
from fedkit.tasks import (
    damaged_digits,
    digits,
    digits_pixels,
    digits_reconstruction,
    digits_rows,
    fashion_mnist,
    fortunes,
    hub,
    keywords,
    motions,
)
from fedkit.tasks.task import Task

BUILT_IN: dict[str, Task] = {
    task.name: task
    for task in sorted(
        (
            damaged_digits.TASK,
            digits.TASK,
            digits_pixels.TASK,
            digits_reconstruction.TASK,
            digits_rows.TASK,
            fashion_mnist.TASK,
            fortunes.TASK,
            keywords.TASK,
            keywords.KWT,
            motions.TASK,
            motions.GRU,
            *hub.TASKS,
        ),
        key=lambda task: task.name,
    )
}
"""Name -> task, for `--task NAME`."""


def load_task(path: str) -> Task:
    """Find a task by built-in name or as `package.module:name`.

    Modules are looked up from the current folder too, as `python -m` does.

    Raises:
        TaskError: No such name, module or attribute, or it is not a `Task`.
    """
    return load(path, BUILT_IN, Task, TaskError)
