"""What the steps of a run say, line by line of its metrics.jsonl."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedkit.core.errors import TaskError
from fedkit.tasks.task import ACCURACY, Metric

Step = Mapping[str, Any]
"""A line of metrics.jsonl, as `RunFolder.metrics` gives it."""

_MOST_NAME = 60
_FORM = re.compile(r"[-+ ]?,?(\.\d{1,2})?[eEfFgGn%]?")
"""Formats of numbers that cannot make a long text; others would fill the memory."""


def metric_of(steps: Sequence[Step]) -> Metric:
    """Return what `accuracy` of these steps is: accuracy, but where a line names another metric.

    A name or format that no task of ours would have is not taken.
    """
    about = steps[-1].get("metric") if steps else None
    if about is None:
        return ACCURACY
    try:
        form = about["form"] if _FORM.fullmatch(about["form"]) else ".4g"
        return Metric.of({**about, "form": form, "name": about["name"][:_MOST_NAME]})
    except (TaskError, TypeError, KeyError):
        return ACCURACY


def counted(steps: Sequence[Step]) -> str:
    """Return what the keys of bytes begin with, `_down` and `_up` follow.

    The transport's messages whole where there was a transport, else the payload. A run that went
    on in the other way has the messages of a part of its steps alone: then the payload too.
    """
    there = ["message_bytes_up" in step for step in steps if step["bytes_up"] or step["bytes_down"]]
    ways = ("message_bytes_down", "message_bytes_up")
    any_sent = any(step.get(way, 0) for step in steps for way in ways)
    return "message_bytes" if any_sent and all(there) else "bytes"


def last_value(steps: Sequence[Step]) -> float | None:
    """Return the metric as last measured; None where no line holds a number."""
    values = (step["accuracy"] for step in reversed(steps))
    return next((value for value in values if is_number(value)), None)


def is_count(value: object) -> bool:
    """Whether a value is a whole number, 0 or more, that an int64 holds."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # an integer may be larger than any float
