"""Built-in tasks, and how any task is found.

Importing this loads no data and no data library; each task does on first use.
"""

from __future__ import annotations

from fedkit.errors import TaskError
from fedkit.lookup import find
from fedkit.task import Task
from fedkit.tasks import digits, fashion_mnist, hub

BUILT_IN: dict[str, Task] = {
    task.name: task for task in (digits.TASK, fashion_mnist.TASK, *hub.TASKS)
}
"""Name -> task, for `--task NAME`."""


def load_task(path: str) -> Task:
    """Find a task by built-in name or as `package.module:name`.

    Modules are looked up from the current folder too, as `python -m` does.

    Raises:
        TaskError: No such name, module or attribute, or it is not a `Task`.
    """
    if path in BUILT_IN:
        return BUILT_IN[path]
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise TaskError(
            f"no task {path!r}; give one of {', '.join(sorted(BUILT_IN))} "
            "or a path like package.module:name"
        )
    task = _find(path)
    if not isinstance(task, Task):
        found = "nothing" if task is None else f"a {type(task).__name__}"
        raise TaskError(
            f"task path {path!r} leads to {found}; {attribute!r} must be a fedkit.task.Task "
            f"at the top level of module {module_name!r}"
        )
    return task


def _find(path: str) -> object:
    try:
        return find(path)
    except ImportError as error:
        raise TaskError(
            f"task path {path!r}: module {path.partition(':')[0]!r} cannot be imported ({error}); "
            "run from the folder that holds it, or install it"
        ) from error
