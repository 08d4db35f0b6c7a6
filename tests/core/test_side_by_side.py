"""Work in several threads: all of it, in order, and an end to it when something fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from fedkit.core.side_by_side import cores, side_by_side


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_are_in_the_order_of_the_items(workers: int, count: int) -> None:
    seen: list[int] = []

    def square(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        seen.append(item)
        return item * item

    assert side_by_side([square] * workers, range(count)) == [i * i for i in range(count)]
    assert sorted(seen) == list(range(count))


def test_each_function_runs_in_one_thread_at_a_time() -> None:
    busy: set[int] = set()

    def of(name: int) -> Callable[[int], int]:
        def work(item: int) -> int:
            assert name not in busy
            busy.add(name)
            time.sleep(0.001)
            busy.remove(name)
            return name

        return work

    found = side_by_side([of(0), of(1), of(2)], range(60))
    assert set(found) == {0, 1, 2}


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_failure_is_raised_and_nothing_is_begun_after_it(workers: int) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        if item >= 4:
            raise ValueError(f"item {item}")
        return item

    with pytest.raises(ValueError, match="item 4"):
        side_by_side([work] * workers, range(1000))
    assert len(begun) < 4 + 3 * workers


class Stopped(BaseException):
    """As a signal raises."""


def test_a_caller_that_is_stopped_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.02)
        return item

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(Stopped):
            side_by_side([work, work], range(1000))
    time.sleep(0.1)
    count = len(begun)
    time.sleep(0.1)
    assert len(begun) == count < 20


def test_at_least_one_core() -> None:
    assert cores() >= 1
