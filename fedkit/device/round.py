"""The device's side of a run: one function per message, the same in every transport.

A device holds nothing but its data and a small memory (flat arrays, so that any transport can
store it): the candidate pool until a candidate is chosen, afterwards the current masks, and of what
it trained the part that was too small for the bits it may send.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedkit.config import RunConfig
from fedkit.core.errors import EngineError, FleetError, TaskError, WireError
from fedkit.core.heap import is_small, return_free_blocks
from fedkit.device.staying import completed, to_remember, with_own
from fedkit.engine.base import Engine, Resting, measure
from fedkit.methods.interface import LocalRound, Method, Phase
from fedkit.methods.registry import load_method
from fedkit.methods.travel import Travel
from fedkit.sparse.candidates import CandidatePool
from fedkit.sparse.counts import round_share
from fedkit.sparse.kept import nothing
from fedkit.sparse.state import Masks, ModelState, Weights
from fedkit.tasks.metrics import Measure
from fedkit.tasks.metrics.as_text import metric_of
from fedkit.tasks.task import Examples
from fedkit.wire import codec, messages
from fedkit.wire.messages import POOL_STATS, QUESTION, Packet, Update

Memory = Packet
"""What a device remembers between messages; it starts as `Packet({})`."""

T = TypeVar("T")

_KEPT = "kept."


@dataclass(frozen=True)
class Device:
    """One device: its index in the fleet, its data, and how it computes.

    `validation` is what it holds out of training (`fedkit.device.held_out`).
    """

    index: int
    examples: Examples
    engine: Engine
    config: RunConfig
    validation: Examples | None = None

    def handle(self, phase: Phase, request: Packet, memory: Memory) -> tuple[Packet, Memory]:
        """Answer one message; return the reply and the new memory.

        Raises:
            WireError: The message does not fit the model, or what this device remembers.
            EngineError: The engine cannot compute on this device's examples.
            FleetError: Training diverged here.
        """
        answers = {
            "moments": self._moments,
            "losses": self._losses,
            "survey": self._survey,
            "train": self._train,
            "evaluate": self._evaluate,
            "introduction": self._introduce,
        }
        try:
            reply, memory = answers[phase](request, memory)
        except (EngineError, FleetError) as error:
            count = len(self.examples)
            raise type(error)(f"device {self.index}, {count} example(s): {error}") from error
        return messages.narrow(reply, self.config.wire), memory

    def rest(self) -> None:
        """Give back what is kept for the next message, on a device for which that may take long."""
        if isinstance(self.engine, Resting):
            self.engine.rest()
        return_free_blocks()

    def _computed(self, result: T) -> T:
        """Return a result; a small process first gives back what it took to compute it.

        The next candidate, or the reply, is made in the memory that a step took.
        """
        if is_small():
            self.rest()
        return result

    @functools.cached_property
    def _method(self) -> Method:
        return load_method(self.config.method)

    @property
    def _development(self) -> Examples:
        """The subset that ranks candidates: a fixed random share, at least two examples."""
        count = max(2, round_share(self.config.development_share, len(self.examples)))
        order = np.random.default_rng([self.config.seed, 2, self.index])
        return self.examples.view(np.sort(order.permutation(len(self.examples))[:count]))

    def _introduce(self, request: Packet, memory: Memory) -> tuple[Packet, Memory]:
        """Say nothing: who answers is told by the transport."""
        return Packet({}), memory

    def _moments(self, request: Packet, memory: Memory) -> tuple[Packet, Memory]:
        if "asked" in request.arrays:
            return self._answer(request, memory)
        pool = messages.read_pool(request, self.engine.layout)
        data = self._development
        norms = [
            self._computed(self.engine.norm_moments(pool.candidate(i), data))
            for i in range(len(pool))
        ]
        return messages.pack_moments(norms, len(data)), request

    def _answer(self, request: Packet, memory: Memory) -> tuple[Packet, Memory]:
        """Return the moments of the norms asked for, under the statistics of those before them.

        The pool and what is known of its statistics are remembered, beside what was before.
        """
        layout = self.engine.layout
        if "counts" in request.arrays:
            pool = messages.read_pool(request, layout)
            rows = [pool.union.stats] * len(pool)
        else:
            pool = self._pool(memory)
            rows = messages.read_stats(memory, layout, len(pool), POOL_STATS)
        question = messages.read_question(request, layout, len(pool))
        rows = [{**row, **known} for row, known in zip(rows, question.known, strict=True)]
        data = self.examples if question.number else self._development
        found = []
        for index, row in enumerate(rows):
            state = replace(pool.candidate(index), stats=row)
            norms = self._computed(self.engine.norm_moments(state, data, frozen=True))
            found.append({name: norms[name] for name in question.asked})
        told = {key: a for key, a in request.arrays.items() if key not in QUESTION}
        merged = messages.pack_stats(rows).arrays["stats"]
        remembered = {**memory.arrays, **told, POOL_STATS: merged}
        digest = request.numbers.get("mask_digest", memory.numbers.get("mask_digest", ""))
        return messages.pack_moments(found, len(data)), Packet(remembered, {"mask_digest": digest})

    def _losses(self, request: Packet, memory: Memory) -> tuple[Packet, Memory]:
        remembered = self._with_stats(request, memory)
        pool = self._pool(remembered)
        merged = messages.read_stats(remembered, self.engine.layout, len(pool), POOL_STATS)
        data = self._development
        losses = [
            self._computed(self.engine.loss(replace(pool.candidate(i), stats=merged[i]), data))
            for i in range(len(pool))
        ]
        return messages.pack_losses(losses, len(data)), remembered

    def _pool(self, memory: Memory) -> CandidatePool:
        if "counts" not in memory.arrays:
            raise WireError("no candidates are in this device's memory; send the pool first")
        return messages.read_pool(memory, self.engine.layout)

    def _with_stats(self, request: Packet, memory: Memory) -> Memory:
        """Return the pool with its candidates' statistics: merged ones, or the server's."""
        if POOL_STATS in request.arrays:
            return request
        if "counts" not in request.arrays:
            found = request.arrays.get("stats")
            stats = {} if found is None else {POOL_STATS: found}
            return Packet({**memory.arrays, **stats}, memory.numbers)
        same = np.tile(request.arrays["stats"], (len(self._pool(request)), 1))
        return Packet({**request.arrays, POOL_STATS: same}, request.numbers)

    def _survey(self, request: Packet, memory: Memory) -> tuple[Packet, Memory]:
        survey = self._method.survey
        if survey is None:
            raise WireError(
                f"a survey was asked for, and method {self.config.method!r} has no survey; server "
                "and device run different methods: give both the same config"
            )
        state = messages.read_state(request, self.engine.layout, None)
        scores = self._computed(survey(self._round(0), state))
        return messages.pack_scores(scores, len(self.examples)), memory

    @functools.cached_property
    def _parts(self) -> Travel:
        return Travel.of(self.config, self.engine)

    def _round(self, number: int, kept: dict[str, NDArray[Any]] | None = None) -> LocalRound:
        layers = self._method.layers(self.config, self._parts.shared.layout.prunable, number)
        return LocalRound(
            *(self.config, self.engine, self.examples, self.index, number, layers, kept or {}),
            self._parts.trained,
        )

    def _train(self, request: Packet, memory: Memory) -> tuple[Packet, Memory]:
        state = self._received(request, memory)
        kept = {
            name.removeprefix(_KEPT): array
            for name, array in memory.arrays.items()
            if name.startswith(_KEPT)
        }
        number = messages.read_count(request, "round")
        trained = self._computed(self._method.local(self._round(number, kept), state))
        shared = self._parts.shared
        told = Update(shared.of(trained.state), len(self.examples), trained.loss, trained.entries)
        reply, remainder = self._reply(told, shared.of(state), memory)
        reply = Packet(reply.arrays, {**reply.numbers, "round": number})
        remembered = {"known_masks": codec.encode_masks(state.masks), **remainder}
        remembered |= {_KEPT + name: array for name, array in trained.kept.items()}
        remembered |= to_remember(self._parts, trained.state)
        return reply, Packet(remembered)

    def _evaluate(self, request: Packet, memory: Memory) -> tuple[Packet, Memory]:
        """Measure the model that came, with the device's own tensors; remember its masks."""
        if self.validation is None:
            raise WireError(
                "a metric was asked for, and this device holds no examples out; server and device "
                "have different configs: give both the same"
            )
        number, state = messages.read_count(request, "round"), self._received(request, memory)
        value = _value(self.engine, state, self.validation, _metric(request))
        arrays = {**memory.arrays, **self._knowing(state.masks, memory)}
        remembered = {**arrays, **to_remember(self._parts, state)}
        return messages.pack_value(value, number), Packet(remembered)

    def _knowing(self, masks: Masks, memory: Memory) -> dict[str, NDArray[Any]]:
        """Return what is told of masks in a memory, once the device knows others."""
        known = {"known_masks": codec.encode_masks(masks)}
        if "remainder" in memory.arrays:
            own, base = self._remainder_masks(memory), self._parts.shared.masks(masks)
            known["remainder_mask_changes"] = codec.encode_masks(own, base)
        return known

    def _reply(
        self, update: Update, sent: ModelState, memory: Memory
    ) -> tuple[Packet, dict[str, NDArray[Any]]]:
        """Return the packed update, and what of it to remember: the part that did not travel."""
        layout, bits = self._parts.shared.layout, self.config.uplink_bits
        if bits == 0:
            return messages.pack_update(update, layout, sent.masks), {}
        earlier = self._remainder(memory)
        reply, remainder = messages.pack_differences(update, layout, sent, bits, earlier)
        changes = codec.encode_masks(update.state.masks, sent.masks)
        return reply, {"remainder": remainder, "remainder_mask_changes": changes}

    def _remainder(self, memory: Memory) -> Weights:
        """Return what earlier rounds could not send, 0 where there is nothing."""
        layout, values = self._parts.shared.layout, memory.arrays.get("remainder")
        if values is None:
            return nothing(layout.weights)
        return codec.decode_values(values, layout.weights, self._remainder_masks(memory))

    def _remainder_masks(self, memory: Memory) -> Masks:
        changes, known = memory.arrays["remainder_mask_changes"], self._known_masks(memory)
        shared = self._parts.shared
        base = None if known is None else shared.masks(known)
        return codec.decode_masks(changes, shared.layout.prunable_shapes, base)

    def _received(self, request: Packet, memory: Memory) -> ModelState:
        if "candidate" in request.numbers:
            pool, layout = self._pool(memory), self.engine.layout
            merged = messages.read_stats(memory, layout, len(pool), POOL_STATS)
            index = messages.read_count(request, "candidate", 0, len(pool) - 1)
            return replace(pool.candidate(index), stats=merged[index])
        known = self._known_masks(memory)
        if messages.PART in request.numbers:
            return self._from_part(request, memory, known)
        state = messages.read_state(request, self.engine.layout, known)
        return with_own(self._parts, state, memory)

    def _from_part(self, request: Packet, memory: Memory, known: Masks | None) -> ModelState:
        if known is None:
            raise WireError(
                "a part of the model came, and this device remembers nothing of the rest; send "
                "the model whole"
            )
        shared = self._parts.shared
        part = messages.read_state(request, shared.layout, shared.masks(known))
        return completed(self._parts, part, memory, known)

    def _known_masks(self, memory: Memory) -> Masks | None:
        if "known_masks" not in memory.arrays:
            return None
        return codec.decode_masks(memory.arrays["known_masks"], self.engine.layout.prunable_shapes)


def _metric(request: Packet) -> Measure:
    try:
        return metric_of(str(request.numbers.get(messages.METRIC)))
    except TaskError as error:
        raise WireError(f"{error}: server and device run different versions") from error


def _value(engine: Engine, state: ModelState, examples: Examples, metric: Measure) -> float | None:
    """Return a metric; None where it has no value, as an AUROC where one class is missing."""
    try:
        return measure(engine, state, examples, metric)
    except TaskError:
        return None
