"""A metric as text, for a message: its name and its settings."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, cast

from fedkit.core.errors import TaskError
from fedkit.core.text import short
from fedkit.tasks.metrics import METRICS
from fedkit.tasks.metrics.measure import Measure


def metric_text(measure: Measure) -> str:
    """Write a metric of `METRICS`."""
    settings = {each.name: getattr(measure, each.name) for each in fields(cast(Any, measure))}
    return json.dumps([measure.name, settings])


def metric_of(text: str) -> Measure:
    """Invert `metric_text`.

    Raises:
        TaskError: It is another text, or of a metric that this version lacks.
    """
    try:
        name, settings = json.loads(text)
        return METRICS[name](**settings)
    except (ValueError, KeyError, TypeError, RecursionError, TaskError) as error:
        raise TaskError(
            f"metric is {short(text)}; it must be one of {', '.join(METRICS)} with its settings"
        ) from error
