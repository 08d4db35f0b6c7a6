"""Built-in tasks. Importing this loads no data and no data library; each task does on first use."""

from __future__ import annotations

from fedkit.task import Task
from fedkit.tasks import digits, fashion_mnist

BUILT_IN: dict[str, Task] = {task.name: task for task in (digits.TASK, fashion_mnist.TASK)}
"""Name -> task, for `--task NAME`."""
