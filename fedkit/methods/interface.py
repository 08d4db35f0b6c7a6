"""The interface of methods: how the first masks are made, and how they change while a fleet trains.

A method is one frozen row of plain functions. Two of them run on the server (`start`, `adjust`),
two on a device (`local`, `survey`); each has a default, so a static baseline is one function and a
dynamic one two. `fedkit.methods.registry` holds the table of all methods. Importing this needs no
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedkit.config import RunConfig
from fedkit.core.errors import ConfigError
from fedkit.engine.base import Engine, GradientSums
from fedkit.methods.schedule import (
    adjusts_in,
    derived_seed,
    kept_per_layer,
    learning_rate,
    local_training,
)
from fedkit.methods.server_training import tune
from fedkit.sparse.part import Part
from fedkit.sparse.state import Masks, ModelState, Weights
from fedkit.sparse.topk import Entries
from fedkit.tasks.task import Examples
from fedkit.wire import messages
from fedkit.wire.messages import Packet, Update
from fedkit.wire.validation import Coverage

if TYPE_CHECKING:
    from torch import nn

Phase = Literal["moments", "losses", "survey", "train", "evaluate", "introduction"]
"""What a message asks of a device: moments or loss per candidate, scores of a dense model, a round
of training, a metric on data it holds out, or nothing but which device it is."""


Answer = TypeVar("Answer")
"""What a reply is read as."""


@dataclass(frozen=True)
class Request:
    """What the server asks of every device.

    Attributes:
        whole: Returns the packet for a device of which nothing is known.
        short: What a device needs that answered the exchange before; None where that is no less.
        again: Returns the packet for a device that has trained in this run, some time ago; None
            where that is no less than `whole`.
    """

    whole: Callable[[], Packet]
    short: Packet | None = None
    again: Callable[[], Packet] | None = None

    def changed(self, change: Callable[[Packet], Packet]) -> Request:
        """Return this request with all packets changed."""
        short, again = self.short, self.again
        return Request(
            lambda: change(self.whole()),
            None if short is None else change(short),
            None if again is None else lambda: change(again()),
        )


class Dispatcher(Protocol):
    """Carries one request per device and brings the answers back in the order of the devices."""

    @property
    def traffic(self) -> tuple[int, int]:
        """Payload bytes that left the server so far, and that came back."""

    def choose(self, order: Sequence[int], count: int, spare: int = 0) -> None:
        """Ask some devices alone from here on: the first `count` of `order` that are there.

        A fleet that was never told so asks every device.

        Args:
            order: Devices by index, each at most once.
            count: How many, if so many are there.
            spare: How many more are asked; the first `count` answers are taken, which in a
                simulation are those of the first in `order`.
        """

    def exchange(
        self, phase: Phase, request: Request, read: Callable[[Packet], Answer]
    ) -> list[Answer]:
        """Ask every device that was chosen; return what their replies are read as, by device index.

        A fleet may go on without devices that do not answer, or whose reply is refused.

        Args:
            phase: What the message asks.
            request: The message.
            read: Reads one reply, and raises a `WireError` for one that does not fit.
        """


# On the server ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opening:
    """What a server has when a method makes the first sparse model.

    Attributes:
        config: The run.
        engine: Computes with the model.
        dense: The dense start.
        server_data: The server's own examples, or None.
        fleet: The devices, for methods that ask them.
        module: Returns a fresh torch module of the task, loaded with a state, to evaluate.
        input_shape: Shape of one example.
    """

    config: RunConfig
    engine: Engine
    dense: ModelState
    server_data: Examples | None
    fleet: Dispatcher
    module: Callable[[ModelState], nn.Module]
    input_shape: tuple[int, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Kept weights per layer by the configured distribution, without noise."""
        return kept_per_layer(self.config, self.engine.layout.prunable_shapes)

    @property
    def budget(self) -> int:
        """Kept weights in all: floor(density * prunable weights)."""
        return sum(self.counts.values())

    @property
    def rng(self) -> np.random.Generator:
        """A generator that the run's seed alone decides."""
        return np.random.default_rng([self.config.seed, 6])

    def tuned(self, state: ModelState) -> ModelState:
        """Return a model that the server trained for `sparse_epochs` on its own examples."""
        return tune(self.config, self.engine, state, self.server_data)

    def sample(self, count: int) -> Examples:
        """Return at most `count` random examples of the server's own.

        Raises:
            ConfigError: The server has no examples of its own.
        """
        if self.server_data is None:
            raise ConfigError(
                f"method {self.config.method!r} scores weights on the server's own examples, and "
                f"there are none with server_share {self.config.server_share}; raise it, or take a "
                "method that needs no data there, such as ssfl"
            )
        order = self.rng.permutation(len(self.server_data))[:count]
        return self.server_data.take(order)


@dataclass(frozen=True)
class Opened:
    """The first model that devices train.

    Attributes:
        state: The model.
        request: How it reaches the devices: the first message to train, but for its round.
        loss: The devices' mean loss with it, where the method asked them.
    """

    state: ModelState
    request: Request
    loss: float | None = None


def send_whole(state: ModelState) -> Opened:
    """Open with a model that no device knows anything of yet."""
    return Opened(state, whole_model(state))


def whole_model(state: ModelState) -> Request:
    """Return the message that brings a model, whatever its receiver knows."""
    return Request(lambda: messages.pack_state(state, None))


def changed_model(state: ModelState, known: Masks, shared: Part | None = None) -> Request:
    """Return the message that brings a model, only the changes to devices that know `known`.

    Args:
        state: The model.
        known: Masks of the whole model.
        shared: What of it can have changed at all, where that is less: a device that has trained
            in this run has the rest.
    """
    if shared is None or shared.whole:
        return replace(whole_model(state), short=messages.pack_state(state, known))
    part = shared.of(state)
    return Request(
        whole_model(state).whole,
        messages.pack_part(part, shared.masks(known)),
        lambda: messages.pack_part(part, None),
    )


def static(masks_of: Callable[[Opening], Masks]) -> Callable[[Opening], Opened]:
    """Return the `start` of a method whose first masks come from one function.

    The server tunes the pruned model on its own examples for as long as FedTiny's server prunes.
    """

    def start(opening: Opening) -> Opened:
        return send_whole(opening.tuned(opening.dense.with_masks(masks_of(opening))))

    return start


@dataclass(frozen=True)
class Aggregated:
    """What a server has at the end of a round.

    Attributes:
        config: The run.
        number: The round, from 1.
        sent: The masks that devices were sent, of what travels.
        state: The merged model: weights are means over the devices that keep them; its masks are
            the union of theirs. What does not travel in a round is not in it.
        updates: What the devices returned, by index; of what travels.
        shares: |D_k| / |D| per update.
    """

    config: RunConfig
    number: int
    sent: Masks
    state: ModelState
    updates: Sequence[Update]
    shares: Sequence[float]


# On a device --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalRound:
    """One message to one device: its data, its engine, and what the round allows.

    Attributes:
        config: The run.
        engine: Computes with the model.
        examples: The device's data.
        index: The device's place in the fleet.
        number: The round, from 1; 0 in a survey.
        layers: Layers of which the server expects entries this round.
        kept: Arrays that the method left here in the round before.
        trained: Names of the weights that are trained; None: all.
    """

    config: RunConfig
    engine: Engine
    examples: Examples
    index: int
    number: int
    layers: Sequence[str] = ()
    kept: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    trained: frozenset[str] | None = None

    def train(
        self,
        state: ModelState,
        epochs: int | None = None,
        part: int = 0,
        gradient_sums: GradientSums | None = None,
    ) -> tuple[ModelState, float]:
        """Train the kept weights as the config says; return the state and the last epoch's loss.

        Args:
            state: The model.
            epochs: Epochs, where a method divides the round; else the config's.
            part: Which part of such a round, for an order of examples of its own.
            gradient_sums: See `Engine.train`.
        """
        config = self.config
        epochs = config.epochs if epochs is None else epochs
        rate = learning_rate(config, self.number)
        how = local_training(config, epochs, rate, self.trained, self.number)
        seed = derived_seed(config.seed, 3, self.number, self.index, *([part] if part else []))
        return self.engine.train(state, self.examples, how, seed, gradient_sums)

    @property
    def sample(self) -> Examples:
        """At most `adjust_examples` random examples, the batch behind scores and gradients."""
        order = np.random.default_rng([self.config.seed, 4, self.number, self.index])
        chosen = order.permutation(len(self.examples))[: self.config.adjust_examples]
        return self.examples.view(chosen)

    @property
    def adjusts(self) -> bool:
        """Whether masks change in this round."""
        return adjusts_in(self.config, self.number)


@dataclass(frozen=True)
class Trained:
    """What a device's part of a method returns.

    Attributes:
        state: The trained model.
        loss: Mean training loss of the last epoch.
        entries: Scores for the server: some entries of each of the round's `layers`.
        kept: Arrays to find again in the next round; they do not travel.
    """

    state: ModelState
    loss: float
    entries: Mapping[str, Entries] = field(default_factory=dict)
    kept: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def train_only(local: LocalRound, state: ModelState) -> Trained:
    """Train under the masks that came, and report nothing else."""
    return Trained(*local.train(state))


# The row ------------------------------------------------------------------------------------


def _keep(end: Aggregated) -> ModelState:
    return end.state


def _no_layers(config: RunConfig, prunable: Sequence[str], number: int) -> list[str]:
    del config, prunable, number
    return []


def _no_scores(config: RunConfig, masks: Masks) -> int:
    del config, masks
    return 0


@dataclass(frozen=True)
class Method:
    """One way to train a sparse model in a fleet.

    Attributes:
        about: What it is and where it is from, in a line.
        start: Server: the first model, from the dense start.
        local: Device: one round of training.
        layers: Both: the layers of which devices report entries in a round, given the config, all
            prunable layers and the round.
        adjust: Server: the next model, at the end of a round.
        survey: Device: a score per prunable weight of a dense model, where `start` asks for it.
        own_masks: Whether devices may return a model under masks of their own.
        entries: Of which weights of `layers` devices report: of some pruned ones, of all there are,
            or of any. What `adjust` gets is so; a reply that is not is refused.
        settings: Config keys that the method fixes, whatever the user says.
        ablation_of: The method of which this is a part, for reports.
        score_bytes: What a device holds beside weights and indices, for the memory model.
        selects: Whether devices rank candidates before training, by the config's `selection`.
    """

    about: str
    start: Callable[[Opening], Opened]
    local: Callable[[LocalRound, ModelState], Trained] = train_only
    layers: Callable[[RunConfig, Sequence[str], int], list[str]] = _no_layers
    adjust: Callable[[Aggregated], ModelState] = _keep
    survey: Callable[[LocalRound, ModelState], Weights] | None = None
    own_masks: bool = False
    entries: Coverage = "pruned"
    settings: Mapping[str, Any] = field(default_factory=dict)
    ablation_of: str = ""
    score_bytes: Callable[[RunConfig, Masks], int] = _no_scores
    selects: bool = False

    @property
    def adjusts_by_devices(self) -> bool:
        """Whether masks follow what devices report."""
        return self.layers is not _no_layers
