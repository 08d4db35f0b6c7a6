"""Tasks: what a task is, its losses and metrics, where data comes from, and those built in.

The built-in tasks are imported when they are first asked for, as a device needs none of them.
"""

from fedkit.core import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fedkit.tasks.built_in import BUILT_IN, load_task
else:
    __getattr__, __dir__ = lazy.offer(
        __name__,
        {"BUILT_IN": "fedkit.tasks.built_in", "load_task": "fedkit.tasks.built_in"},
    )

__all__ = ["BUILT_IN", "load_task"]
