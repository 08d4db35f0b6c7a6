"""Work of one kind in several threads, for code that leaves the interpreter's lock."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def side_by_side(
    functions: Sequence[Callable[[Item], Result]], items: Iterable[Item]
) -> list[Result]:
    """Return what the functions make of items, in the order of the items.

    Args:
        functions: One for each thread; all do the same, and none disturbs another. One alone runs
            in the caller's thread.
        items: What is left is taken by whichever thread is free.

    Raises:
        BaseException: What a function raised, the one of the earliest item; later items may not
            have been begun then. A signal that raises in the caller ends the others too, each
            after the item that it is at.
    """
    todo = list(items)
    if len(functions) == 1 or len(todo) < 2:
        return [functions[0](item) for item in todo]
    left, results = queue.SimpleQueue[int](), dict[int, Result]()
    failures, stopped = dict[int, BaseException](), threading.Event()
    for place in range(len(todo)):
        left.put(place)

    def work(function: Callable[[Item], Result]) -> None:
        while not stopped.is_set():
            try:
                place = left.get_nowait()
            except queue.Empty:
                return
            try:
                results[place] = function(todo[place])
            except BaseException as error:
                failures[place] = error
                stopped.set()

    # Daemons, so that a process that is asked to end does not wait for a device's training.
    threads = [threading.Thread(target=work, args=(each,), daemon=True) for each in functions]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stopped.set()
    if failures:
        raise failures[min(failures)]
    return [results[place] for place in range(len(todo))]
