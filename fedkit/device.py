"""The device's side of a run: one function per message, the same in every transport.

A device holds nothing but its data and a small memory (flat arrays, so that any transport can
store it): the candidate pool until a candidate is chosen, afterwards the current masks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedkit import messages
from fedkit.config import RunConfig
from fedkit.engine.base import Engine
from fedkit.errors import WireError
from fedkit.fedtiny.candidates import Pool
from fedkit.messages import Packet, Update
from fedkit.plan import adjusting_block, block_quotas, learning_rate, local_training
from fedkit.sparse import codec
from fedkit.sparse.state import Masks, ModelState, Weights
from fedkit.sparse.topk import Entries
from fedkit.task import Examples

Phase = Literal["moments", "losses", "train"]
"""What a message asks: moments per candidate, loss per candidate, or a round of training."""

Memory = Packet
"""What a device remembers between messages; it starts as `Packet({})`."""


@dataclass(frozen=True)
class Device:
    """One device: its index in the fleet, its data, and how it computes."""

    index: int
    examples: Examples
    engine: Engine
    config: RunConfig

    def handle(self, phase: Phase, request: Packet, memory: Memory) -> tuple[Packet, Memory]:
        """Answer one message; return the reply and the new memory."""
        answer = {"moments": self._moments, "losses": self._losses, "train": self._train}[phase]
        return answer(request, memory)

    @property
    def _development(self) -> Examples:
        """The subset that ranks candidates: a fixed random share, at least two examples."""
        count = max(2, round(self.config.development_share * len(self.examples)))
        order = np.random.default_rng([self.config.seed, 2, self.index])
        return self.examples.take(np.sort(order.permutation(len(self.examples))[:count]))

    def _moments(self, request: Packet, memory: Memory) -> tuple[Packet, Memory]:
        pool = messages.read_pool(request, self.engine.layout)
        data = self._development
        norms = [self.engine.norm_moments(pool.candidate(i), data) for i in range(len(pool))]
        return messages.pack_moments(norms, len(data)), request

    def _losses(self, request: Packet, memory: Memory) -> tuple[Packet, Memory]:
        stats = {"candidate_stats": request.arrays["stats"]}
        remembered = Packet({**memory.arrays, **stats}, memory.numbers)
        pool, merged = self._candidates(remembered)
        data = self._development
        losses = [
            self.engine.loss(replace(pool.candidate(i), stats=merged[i]), data)
            for i in range(len(pool))
        ]
        return messages.pack_losses(losses, len(data)), remembered

    def _candidates(self, memory: Memory) -> tuple[Pool, list[Weights]]:
        """Read the pool and the merged statistics of each candidate from memory."""
        if "candidate_stats" not in memory.arrays:
            raise WireError("no candidates are in this device's memory; send the pool first")
        pool = messages.read_pool(memory, self.engine.layout)
        stats = Packet({"stats": memory.arrays["candidate_stats"]})
        return pool, messages.read_stats(stats, self.engine.layout, len(pool))

    def _train(self, request: Packet, memory: Memory) -> tuple[Packet, Memory]:
        state = self._received(request, memory)
        number = int(request.numbers["round"])
        config = self.config
        how = local_training(config, config.epochs, learning_rate(config, number))
        seed = int(
            np.random.SeedSequence([config.seed, 3, number, self.index]).generate_state(1)[0]
        )
        trained, loss = self.engine.train(state, self.examples, how, seed)
        gradients = self._gradients(trained, number)
        update = Update(trained, len(self.examples), loss, gradients)
        remembered = Packet({"known_masks": codec.encode_masks(state.masks)})
        return messages.pack_update(update, self.engine.layout), remembered

    def _received(self, request: Packet, memory: Memory) -> ModelState:
        if "candidate" in request.numbers:
            index = int(request.numbers["candidate"])
            pool, merged = self._candidates(memory)
            return replace(pool.candidate(index), stats=merged[index])
        return messages.read_state(request, self.engine.layout, self._known_masks(memory))

    def _known_masks(self, memory: Memory) -> Masks | None:
        if "known_masks" not in memory.arrays:
            return None
        return codec.decode_masks(memory.arrays["known_masks"], self.engine.layout.prunable_shapes)

    def _gradients(self, state: ModelState, number: int) -> dict[str, Entries]:
        """In an adjusting round, the largest gradients of the block's pruned weights."""
        block = adjusting_block(self.config, self.engine.layout.prunable, number)
        if not block:
            return {}
        amounts = block_quotas(self.config, state.masks, block, number)
        order = np.random.default_rng([self.config.seed, 4, number, self.index])
        chosen = order.permutation(len(self.examples))[: self.config.adjust_examples]
        return self.engine.top_gradients(state, self.examples.take(chosen), amounts)
