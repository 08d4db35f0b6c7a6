"""Steps of a run, written on for the programs where people already look: `fedkit run --log`.

Each is a row of `LOGGERS`, and its package an extra of that name. What they get are the lines of
metrics.jsonl as they come; a run that goes on is written again from its first step.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import tomli_w

from fedkit.core.errors import ConfigError
from fedkit.report.run_steps import Step, metric_of
from fedkit.server.checkpoint import RunFolder


class Writer(Protocol):
    """Where numbers of a run go."""

    def step(self, values: Mapping[str, float], number: int) -> None:
        """Write the numbers of a step, name -> value, of a round; round 0 has two steps."""

    def close(self) -> None:
        """Write what is left."""


@dataclass(frozen=True)
class Logger:
    """A program that people look at runs with.

    Attributes:
        package: That writes for it; also the name of its extra.
        open: Begins anew what is written of a run folder.
        where: Tells how to look at it, of a run folder.
    """

    package: str
    open: Callable[[RunFolder], Writer]
    where: Callable[[Path], str]


def require(names: Sequence[str]) -> None:
    """Raise a `ConfigError` where a name is unknown, or its package is not installed."""
    for name in names:
        if name not in LOGGERS:
            raise ConfigError(
                f"--log {name!r} is not a logger; give some of {', '.join(LOGGERS)}, with commas "
                "between"
            )
        package = LOGGERS[name].package
        if find_spec(package) is None:
            raise ConfigError(
                f"--log {name} needs {package}, which is not installed: "
                f"pip install 'fedkit[{name}]'"
            )


@contextmanager
def logged(path: Path, names: Sequence[str]) -> Iterator[Callable[[Sequence[Step]], None]]:
    """Give a function that writes on what is new of all steps so far; close everything at the end.

    Args:
        path: The run folder, with its config.
        names: Of loggers; none writes nothing.
    """
    writers: dict[str, Writer] = {}
    written = 0
    with ExitStack() as open_ones:

        def write(steps: Sequence[Step]) -> None:
            nonlocal written
            for name in names if steps else ():
                if name not in writers:  # Before the first step the folder may still go away.
                    writers[name] = LOGGERS[name].open(RunFolder(path))
                    open_ones.callback(writers[name].close)
            for step in steps[written:]:
                for writer in writers.values():
                    writer.step(_numbers(step), step["round"])
            written = len(steps)

        yield write


_NOT_NUMBERS = ("phase", "round", "metric", "layers")


def _numbers(step: Step) -> dict[str, float]:
    named = {"accuracy": metric_of([step]).key}
    return {
        named.get(key, key): float(value)
        for key, value in step.items()
        if key not in _NOT_NUMBERS and value is not None
    }


# TensorBoard -----------------------------------------------------------------------------------


class _TensorBoard:
    """Event files in the folder `tensorboard` of the run, by the writer that comes with torch."""

    def __init__(self, folder: RunFolder) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensorboard's own imports
            from torch.utils.tensorboard import SummaryWriter

        path = folder.path / "tensorboard"
        shutil.rmtree(path, ignore_errors=True)
        self._writer = SummaryWriter(str(path))
        config = tomli_w.dumps(folder.config.as_dict())
        text = "\n".join(f"    {line}" for line in config.splitlines())
        self._writer.add_text("config", text)

    def step(self, values: Mapping[str, float], number: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


# MLflow ----------------------------------------------------------------------------------------

_STORE, _EXPERIMENT = "mlflow.db", "fedkit"


class _MLflow:
    """A run of the experiment `fedkit` in an SQLite store beside the run folders."""

    def __init__(self, folder: RunFolder) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of mlflow's own imports
            from mlflow.tracking import MlflowClient

        store = folder.path.absolute().parent
        self._client = MlflowClient(f"sqlite:///{store / _STORE}")
        found = self._client.get_experiment_by_name(_EXPERIMENT)
        place = (store / "mlflow-artifacts").as_uri()
        self._experiment = (
            found.experiment_id if found else self._client.create_experiment(_EXPERIMENT, place)
        )
        self._forget(folder.path.name)
        run = self._client.create_run(self._experiment, run_name=folder.path.name)
        self._run = run.info.run_id
        for key, value in folder.config.as_dict().items():
            self._client.log_param(self._run, key, value)

    def _forget(self, name: str) -> None:
        """Delete what an earlier part of the same run wrote."""
        named = f"attributes.run_name = '{name}'"
        for run in self._client.search_runs([self._experiment], named):
            self._client.delete_run(run.info.run_id)

    def step(self, values: Mapping[str, float], number: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=number)

    def close(self) -> None:
        self._client.set_terminated(self._run)


# Weights & Biases ------------------------------------------------------------------------------


class _WandB:
    """An offline run in the folder `wandb` of the run: nothing is sent before a person syncs it.

    What it would gather of this machine is switched off too: its name, packages, code, git, load.
    """

    def __init__(self, folder: RunFolder) -> None:
        # Read when its service starts: else that reports its own errors over the network.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of wandb's own imports
            import wandb

        shutil.rmtree(folder.path / "wandb", ignore_errors=True)
        self._end = wandb.teardown
        self._run = wandb.init(
            project="fedkit",
            name=folder.path.name,
            config=folder.config.as_dict(),
            settings=wandb.Settings(mode="offline", root_dir=str(folder.path), **_QUIET),
        )
        self._run.define_metric("*", step_metric="round")

    def step(self, values: Mapping[str, float], number: int) -> None:
        self._run.log({**values, "round": number})

    def close(self) -> None:
        self._run.finish()
        self._end()


_QUIET: Mapping[str, Any] = {
    **dict.fromkeys(("silent", "disable_git", "disable_code"), True),
    **{f"x_disable_{what}": True for what in ("stats", "meta", "machine_info")},
    **{"x_save_requirements": False, "save_code": False},
    **{"console": "off", "host": "", "program": "fedkit"},
}


LOGGERS: Mapping[str, Logger] = {
    "tensorboard": Logger(
        "tensorboard", _TensorBoard, lambda path: f"tensorboard --logdir {path / 'tensorboard'}"
    ),
    "mlflow": Logger(
        "mlflow",
        _MLflow,
        lambda path: f"mlflow ui --backend-store-uri sqlite:///{path.parent / _STORE}",
    ),
    "wandb": Logger("wandb", _WandB, lambda path: f"wandb leet {path / 'wandb'}"),
}
"""Name -> what writes for it."""
