"""BatchNorm over the data of a whole fleet: its statistics, a level of norms at a time.

A device that normalises by its own batches feeds the next layer other values than one that
normalises by everybody's, so that moments of the second norm on are not those of pooled data,
however they are merged. Here devices are given the merged statistics of all norms that come before,
normalise by these, and return the moments of the next ones, which then merge exactly. Norms that do
not depend on each other, as on parallel branches, share an exchange, and so do all candidates. An
L1 norm takes two: its deviation is around a mean that must be merged first.

What is exact is the rule. Devices compute in float32 (or in integers, each with scales of its own),
statistics travel in the run's width, and each exchange merges those who answered it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from fedkit.config import RunConfig
from fedkit.engine.base import Engine, NormLevels
from fedkit.methods.interface import Dispatcher, Request
from fedkit.sparse.candidates import CandidatePool
from fedkit.sparse.layout import Layout
from fedkit.sparse.state import ModelState, Weights, count_kept
from fedkit.stats.moments import NormMoments
from fedkit.stats.norms import as_stats, merge_norms
from fedkit.wire import messages
from fedkit.wire.messages import Packet
from fedkit.wire.validation import admit_moments


def exact_statistics(
    config: RunConfig,
    engine: Engine,
    input_shape: tuple[int, ...],
    fleet: Dispatcher,
    pool: CandidatePool,
    number: int,
) -> Sequence[Weights]:
    """Return the statistics that each candidate's norms have over the data of all devices.

    Args:
        config: The run.
        engine: The server's.
        input_shape: Shape of one example.
        fleet: The devices.
        pool: The candidates, as devices receive them.
        number: The round it is after, in which devices look at all their examples; 0 before
            training, where they look at those that rank candidates.
    """
    absolute = engine.absolute_norms
    rows = [dict(pool.union.stats) for _ in range(len(pool))]
    known: list[str] = []
    fresh: list[str] = []
    for level, asked in enumerate(_exchanges(engine.norm_levels(input_shape), absolute)):
        stats = [dict(row) for row in rows]  # they go on while a request is kept
        question = functools.partial(
            messages.pack_question, engine.layout, asked, stats=stats, number=number, level=level
        )
        request = _request(pool, question, known, fresh)
        answers = _ask(config, engine.layout, fleet, pool, request, asked)
        for row, norms in zip(rows, zip(*answers, strict=True), strict=True):
            row.update(as_stats(merge_norms(norms, "exact", config.aggregation, absolute)))
        known, fresh = list(dict.fromkeys([*known, *asked])), list(asked)
    return rows


def _ask(
    config: RunConfig,
    layout: Layout,
    fleet: Dispatcher,
    pool: CandidatePool,
    request: Request,
    asked: Sequence[str],
) -> list[list[NormMoments]]:
    """Return the moments of the norms asked for, [devices][candidates]."""
    shapes = messages.stats_of(layout, asked)
    sent = {name: pool.union.stats[name] for name in shapes}
    some = replace(layout, stats=shapes)

    def read(reply: Packet) -> list[NormMoments]:
        return admit_moments(reply, some, sent, config, len(pool))

    return fleet.exchange("moments", request, read)


def _exchanges(levels: NormLevels, absolute: frozenset[str]) -> Iterator[Sequence[str]]:
    for level in levels:
        yield level
        if again := [name for name in level if name in absolute]:
            yield again


def _request(
    pool: CandidatePool,
    question: Callable[[Sequence[str]], Packet],
    known: Sequence[str],
    fresh: Sequence[str],
) -> Request:
    """Return a question with the pool and all that is known, or with what is new alone."""

    def whole() -> Packet:
        packed, asks = messages.pack_pool(pool), question(known)
        return Packet({**packed.arrays, **asks.arrays}, {**packed.numbers, **asks.numbers})

    return Request(whole, question(fresh) if known else None)


def last_statistics(
    config: RunConfig,
    engine: Engine,
    input_shape: tuple[int, ...],
    fleet: Dispatcher,
    state: ModelState,
    number: int,
) -> ModelState:
    """Return the model after round `number` with the statistics of its norms over all devices."""
    if not engine.layout.stats:
        return state
    counts = np.array([list(count_kept(state.masks).values())], np.int32)
    (stats,) = exact_statistics(
        config, engine, input_shape, fleet, CandidatePool(state, counts), number
    )
    return replace(state, stats=stats)
