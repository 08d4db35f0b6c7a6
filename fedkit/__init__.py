"""Federated pruning for small devices: the fleet learns here (`edge` exports, `sim` simulates).

>>> import fedkit
>>> result = fedkit.run("digits", devices=4, rounds=3, density=0.2)  # doctest: +SKIP
>>> result.accuracy, result.density, result.module()  # doctest: +SKIP

Each name is imported when it is first used, so that `import fedkit` takes no time.
"""

from fedkit.core import lazy, moved
from fedkit.core.version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fedkit.config import RunConfig, make_config
    from fedkit.core.errors import FedkitError
    from fedkit.methods.interface import Method
    from fedkit.methods.registry import METHODS
    from fedkit.server.rounds import Report
    from fedkit.tasks.task import Examples, Metric, Task
    from sim.in_process import FinishedRun, run
else:
    __getattr__, __dir__ = lazy.offer(
        __name__,
        {
            "METHODS": "fedkit.methods.registry",
            "Examples": "fedkit.tasks.task",
            "FedkitError": "fedkit.core.errors",
            "Method": "fedkit.methods.interface",
            "Metric": "fedkit.tasks.task",
            "Report": "fedkit.server.rounds",
            "FinishedRun": "sim.in_process",
            "RunConfig": "fedkit.config",
            "Task": "fedkit.tasks.task",
            "make_config": "fedkit.config",
            "run": "sim.in_process",
        },
    )

__all__ = [
    "METHODS",
    "Examples",
    "FedkitError",
    "FinishedRun",
    "Method",
    "Metric",
    "Report",
    "RunConfig",
    "Task",
    "__version__",
    "make_config",
    "run",
]

moved.install()
