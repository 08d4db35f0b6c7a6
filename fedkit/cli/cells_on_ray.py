"""Cells of a grid on the machines of a Ray cluster; a cell whose machine dies runs on another."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from fedkit.core.errors import FedkitError, FleetError
from fedkit.core.signals import SIGNALS
from fedkit.core.version import __version__
from fedkit.flower.processes import ENVIRONMENT

TRIES = 10
"""Times that a cell is begun anew where its machine or process dies; a cell that needs too much
memory dies each time."""


@contextmanager
def ray_pool(address: str) -> Iterator[Executor]:
    """Connect to a cluster; cells that run there end with this process.

    Args:
        address: Of its head, as `ray start --head` says it, or auto for one of this machine.

    Raises:
        FleetError: Nobody answers there.
    """
    # The second is what Ray says that later releases do, and without it a warning.
    os.environ.update({**ENVIRONMENT, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"})
    import ray  # takes seconds

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        _knock(address)
        ray.init(
            address,
            runtime_env={"env_vars": ENVIRONMENT},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ValueError, RuntimeError, OSError, OverflowError) as error:
        raise FleetError(
            f"no Ray cluster answers at {address} ({error}); start one with ray start --head "
            "--port 6379, and give the address that it says"
        ) from error
    for number, handler in handlers.items():
        signal.signal(number, handler)  # Ray has put its own in their places, which abort
    try:
        yield RayExecutor()
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See whether anything listens; Ray itself asks for ten minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


_PATIENCE = 20.0


class RayExecutor(Executor):
    """Runs functions as tasks of one core each, in the cluster that this process is connected to.

    A function and what it takes and returns must be such that pickle can carry.
    """

    def submit(self, function: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        """See `concurrent.futures.Executor.submit`."""
        import ray

        task = ray.remote(num_cpus=1, max_retries=TRIES, retry_exceptions=False)(_told)
        found: Future[Any] = Future()
        found.set_running_or_notify_cancel()

        def done(there: Future[Any]) -> None:
            try:
                result, error = there.result()
            except Exception as lost:  # of Ray: a machine that died too often
                error = FleetError(f"Ray gave it up after {TRIES} tries: {lost}")
            if error is not None:
                found.set_exception(error)
            else:
                found.set_result(result)

        reference = task.remote(__version__, function, given, named)
        reference.future().add_done_callback(done)
        return found


def _told(
    version: str, function: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Any, FedkitError | None]:
    """Run a function on another machine; an error of ours is told as what it is."""
    if version != __version__:
        return None, FleetError(
            f"a machine of the cluster has fedkit {__version__}, and this one {version}; install "
            "the same on all"
        )
    try:
        return function(*given, **named), None
    except FedkitError as error:
        return None, error
