"""What one run is: every choice that shapes its numbers, validated once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedkit.core.config_keys import Key, key, keys_of
from fedkit.core.errors import ConfigError
from fedkit.core.files import read_whole
from fedkit.core.sizes import parse_bytes
from fedkit.core.text import short
from fedkit.sparse.candidates import pool_size
from fedkit.sparse.counts import ceil_share
from fedkit.stats.norms import NormMerge
from fedkit.stats.robust import Aggregation

MOST = (1e30, 10**12)
"""Largest number of any key but a seed: one with a fraction, and a whole one."""

MOST_SEED = 2**63 - 1
"""Largest seed: what torch and a TOML file hold."""

LEAST = 1e-12
"""Smallest number above 0."""

MOST_TEXT = 1000
"""Characters of a text."""

MOST_BYTES = 1 << 20
"""Bytes of a file of keys."""

PartitionKind = Literal[
    "iid",
    "dirichlet",
    "pathological",
    "natural-id",
    "linear",
    "square",
    "exponential",
    "continuous",
]
"""How training data is shared out; `sim.partitioners` has a row for each."""


@dataclass(frozen=True)
class RunConfig:
    """Configuration of one run; the same keys in TOML, as CLI flags and as Flower run-config.

    A value of 0 in a key marked "0: automatic" means the stated rule. Values are checked as it is
    made; text stands for the number that it spells.

    Raises:
        ConfigError: Names every bad value with its rule.
    """

    task: str = key("digits", description="built-in task or package.module:name")
    model: str = key("", description="zoo model instead of the task's, like resnet8")
    method: str = key(
        "fedtiny", description="row of fedkit.methods.registry or package.module:name"
    )
    seed: int = key(1, ge=0, description="seed of every random choice")
    engine: Literal["auto", "torch", "sparse"] = key(
        "auto", description="what computes: sparse C kernels, dense torch, or sparse if it can"
    )
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = key(
        "cpu",
        description="where torch computes: the processor, an accelerator, or one if it is there; "
        "the C engines know the processor alone",
    )
    precision: Literal["fp32", "int8", "int6", "int4"] = key(
        "fp32", description="what training computes with: float32, or integers of so many bits"
    )
    stored_bits: int = key(
        32,
        description="bits in which sparse training stores what its backward pass reads again: 32, "
        "16, 8 or 4",
    )
    memory: str = key(
        "",
        description="most memory that a step of sparse training on a device may take, such as "
        "64MB: it stores as few bits as that needs, at most stored_bits, and then computes its "
        "first ops again, a few examples at a time; left empty, it takes what it needs",
    )

    devices: int = key(10, ge=1, description="devices in the fleet")
    partition: PartitionKind = key(
        "dirichlet", description="how training data is split over the devices"
    )
    partition_by: str = key(
        "",
        description="column of the examples that natural-id and continuous go by: one that the "
        "task names, or targets (default: owners)",
    )
    strictness: float = key(
        1.0, ge=0, le=1, description="how much of continuous is the column; the rest is chance"
    )
    alpha: float = key(0.5, gt=0, description="Dirichlet concentration")
    min_size: int = key(
        10, ge=1, description="examples each device of a dirichlet partition gets at least"
    )
    classes_per_device: int = key(2, ge=1, description="classes of a pathological share")
    single_class: Literal["error", "allow"] = key(
        "error",
        description="what to do when a device holds one class only, or training data lack one",
    )
    examples_per_device: int = key(
        0, ge=0, description="use at most this many examples of each device (0: all)"
    )
    test_examples: int = key(0, ge=0, description="measure on the first so many (0: all)")

    density: float = key(0.1, gt=0, le=1, description="kept share of all prunable weights")
    exempt: str = key("", description="layers kept dense: first, last or names, by commas")
    distribution: Literal["uniform", "erk"] = key(
        "erk", description="relative density of the layers before noise"
    )
    noise: float = key(0.5, ge=0, lt=1, description="half-width of layer-density noise")
    pool_size: int = key(0, ge=0, description="candidates (0: 0.1 / density, at least 3)")
    selection: Literal["adaptive", "vanilla", "none"] = key(
        "adaptive",
        description="candidates are ranked under re-estimated or the server's statistics, or the "
        "one without noise is taken",
    )
    development_share: float = key(
        0.2, gt=0, le=1, description="share of device data that ranks candidates"
    )
    bn_merge: NormMerge = key(
        "pooled",
        description="norm statistics of the fleet: moments pooled of devices that each normalise "
        "by their own batches, or their variances averaged; exact: those of BatchNorm over all "
        "data, by a message per level of norms, for candidates and the last model; exact-last: for "
        "the last model alone",
    )
    server_share: float = key(
        0.05, ge=0, lt=1, description="share of training data that is the server's own"
    )
    server_epochs: int = key(20, ge=0, description="epochs of pre-training on it")
    sparse_epochs: int = key(
        20,
        ge=0,
        description="epochs of the sparse model on it: FedTiny prunes on the way, others tune",
    )
    pruning: Literal["gradual", "once"] = key(
        "gradual", description="FedTiny's server prunes over those epochs, or once and then tunes"
    )

    rounds: int = key(30, ge=1, description="communication rounds")
    wire: Literal["fp32", "fp16"] = key("fp32", description="width of the values that travel")
    uplink_bits: int = key(
        0,
        ge=0,
        le=8,
        description="devices send what they changed in 2 .. 8 bits per value (0: whole)",
    )
    epochs: int = key(5, ge=1, description="local epochs per round")
    batch_size: int = key(64, ge=1, description="local batch size")
    lr: float = key(0.1, gt=0, description="learning rate of the first round")
    lr_final: float = key(0.01, gt=0, description="learning rate of the last (cosine between)")
    momentum: float = key(0.9, ge=0, lt=1, description="local momentum, fresh each round")
    weight_decay: float = key(5e-4, ge=0, description="L2 penalty on the kept weights")

    adjust_every: int = key(0, ge=0, description="rounds between adjustments (0: rounds / 30)")
    adjust_stop: int = key(
        0, ge=0, description="round where the quota has fallen to 0 (0: rounds / 3)"
    )
    adjust_share: float = key(0.3, ge=0, le=1, description="largest share of a layer swapped")
    adjust_examples: int = key(256, ge=1, description="examples behind one gradient top-k")
    blocks: int = key(5, ge=1, description="contiguous blocks that take turns")
    granularity: Literal["layer", "block", "entire"] = key(
        "block", description="what one adjustment changes: a layer, a block or the entire model"
    )
    order: Literal["backward", "forward"] = key(
        "backward", description="whose turn is first: the output's or the input's"
    )

    train: str = key(
        "all",
        min_length=1,
        description="weights that devices train: all, norm, head, norm+head or a regular "
        "expression of names; the others are sent once and stay as they began",
    )
    local: str = key(
        "",
        description="tensors that each device keeps to itself: norm, head, norm+head or a regular "
        "expression of names (default: none)",
    )
    backbone: str = key(
        "", description="run folder whose last model is the dense start, instead of pre-training"
    )

    aggregation: Aggregation = key(
        "mean",
        description="devices merge by their numbers of examples, or all alike and robustly",
    )
    max_change: float = key(
        100.0,
        ge=0,
        description="refuse a device whose model moved by more norms of the one sent (0: never)",
    )
    max_examples: int = key(
        0, ge=0, description="refuse a device that claims more examples (0: never)"
    )
    dp_clip: float = key(
        0.0,
        ge=0,
        description="differential privacy of devices, one of which is added or removed: clip the "
        "change of each to this norm (0: none)",
    )
    dp_noise: float = key(
        1.0,
        ge=0,
        description="its noise on the sum of all devices' changes, in clipping norms; the sum is "
        "divided by the devices that a round asks, not only those that answer",
    )
    dp_delta: float = key(1e-5, gt=0, lt=1, description="delta of the epsilon that is reported")
    devices_per_round: int = key(
        0,
        ge=0,
        description="devices that each round asks, drawn at random (0: all); in a private run "
        "each is asked by chance, and so many are asked on average",
    )
    over_selection: float = key(
        0.0,
        ge=0,
        le=10,
        description="further devices that each round asks, as a share of devices_per_round; it "
        "closes with the first devices_per_round answers",
    )
    availability: str = key(
        "always",
        description="which devices are there in a round: always, random:SHARE, "
        "cycle:ROUNDS:SHARE (day and night) or trace:FILE (lines device,first round,last round)",
    )
    min_share: float = key(
        1.0,
        gt=0,
        le=1,
        description="share of the devices asked whose answers a step needs; the others are left "
        "out",
    )
    deadline: float = key(
        3600.0, gt=0, le=1e9, description="seconds that a step waits for devices over Flower"
    )
    quarantine_after: int = key(
        3, ge=1, description="refused answers after which a device is not asked again"
    )

    measure_every: int = key(
        1, ge=1, description="rounds between measurements on the test data; the last is measured"
    )
    device_eval: int = key(
        0,
        ge=0,
        description="rounds between measurements by devices, on data they hold out; the last is "
        "measured (0: none)",
    )
    validation_share: float = key(
        0.0, ge=0, lt=1, description="share of its examples that a device holds out for that"
    )

    def __post_init__(self) -> None:
        problems = []
        for name, rules in KEYS.items():
            given = getattr(self, name)
            try:
                object.__setattr__(self, name, _checked(name, rules, given))
            except ValueError as error:
                problems.append(f"{name} is {short(given)}: {error} ({rules.description})")
        # Rules about several keys name them, and rest on values that are right.
        if problems or (problems := [*_together(self)][:1]):
            raise ConfigError("; ".join(problems))

    def changed(self, **values: Any) -> RunConfig:
        """Return the same run with other values of some keys.

        Raises:
            ConfigError: See `RunConfig`.
        """
        return replace(self, **values)

    def as_dict(self) -> dict[str, Any]:
        """Return the values by key, as a file holds them."""
        return asdict(self)

    @property
    def engine_wishes(self) -> tuple[Any, ...]:
        """What an engine is chosen by, in the order of `fedkit.engine.choose.make_engine`."""
        stored = self.stored_bits, self.accelerator, self.memory_bytes
        return self.engine, self.precision, *stored

    @property
    def memory_bytes(self) -> int | None:
        """Most bytes of a step; None: what it needs."""
        return parse_bytes(self.memory) if self.memory else None

    @property
    def asked(self) -> int:
        """Devices whose answers a round takes, if they are there."""
        return self.devices_per_round or self.devices

    @property
    def spare(self) -> int:
        """Further devices that a round asks, so that it has those answers sooner."""
        return min(ceil_share(self.over_selection, self.asked), self.devices - self.asked)

    @property
    def sampling_rate(self) -> float:
        """Chance of a device to be asked in a round of a private run; 1 where all are asked."""
        return self.asked / self.devices if self.dp_clip else 1.0

    @property
    def candidates(self) -> int:
        """Size of the candidate pool."""
        return self.pool_size or pool_size(self.density)

    @property
    def adjustment_period(self) -> int:
        """Rounds between mask adjustments: the paper's 10 of 300 in proportion."""
        return self.adjust_every or max(1, round(self.rounds / 30))

    @property
    def last_adjustment(self) -> int:
        """Round at which adjustments have faded out: the paper's 100 of 300 in proportion."""
        return self.adjust_stop or max(1, round(self.rounds / 3))

    @property
    def exempt_layers(self) -> tuple[str, ...]:
        """Entries of `exempt`."""
        return tuple(part.strip() for part in self.exempt.split(",") if part.strip())


KEYS: Mapping[str, Key] = keys_of(RunConfig)
"""The keys of a run, by name."""


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Validate keys and values.

    Raises:
        ConfigError: Names every bad key with the nearest allowed ones, or every bad value with
            its rule.
    """
    if wrong := [name for name in values if not isinstance(name, str)]:
        raise ConfigError(f"key {short(wrong[0])} is not text; keys are names like density")
    if unknown := [_unknown(name) for name in values if name not in KEYS]:
        raise ConfigError("; ".join(unknown))
    return RunConfig(**values)


def _unknown(name: str) -> str:
    import difflib  # as tomllib

    near = difflib.get_close_matches(name, KEYS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key {short(name)}; {hint}allowed: {', '.join(KEYS)}"


# Rules beyond a type and bounds


def _checked(name: str, rules: Key, given: object) -> Any:
    """Return a value as its type has it; raises a ValueError that says the rule it breaks."""
    value = rules.checked(given)
    _check_place(name, value)
    if (own := _OWN.get(name)) is not None:
        own(value)
    return value


def _check_place(name: str, value: str | float) -> None:
    """Refuse what torch, a TOML file, a clock or a terminal could not hold."""
    if isinstance(value, str):
        if not (value.isprintable() and len(value) <= MOST_TEXT):
            raise ValueError(f"text must be one line of at most {MOST_TEXT} characters")
        return
    most = MOST_SEED if name == "seed" else MOST[type(value) is int]
    if not (value == 0 or LEAST <= abs(value) <= most):
        raise ValueError(f"a number other than 0 must be in {LEAST} .. {most}")


def _check_stored_bits(bits: int) -> None:
    if bits not in (32, 16, 8, 4):
        raise ValueError("give 32, 16, 8 or 4")


def _check_memory(memory: str) -> None:
    if memory:
        parse_bytes(memory)


def _check_uplink_bits(bits: int) -> None:
    if bits == 1:
        raise ValueError("one bit holds no number and its opposite; give 2 .. 8, or 0")


def _check_clip(norm: float) -> None:
    """Refuse a norm that float32 does not hold."""
    if norm and not 1e-12 <= norm <= 1e12:
        raise ValueError("clip to a norm of 1e-12 .. 1e12, or 0 for none")


_OWN: Mapping[str, Callable[[Any], None]] = {
    "stored_bits": _check_stored_bits,
    "memory": _check_memory,
    "uplink_bits": _check_uplink_bits,
    "dp_clip": _check_clip,
}
"""Keys with a rule of their own."""


def _together(config: RunConfig) -> Iterator[str]:
    """Yield what is wrong with values that are right each by itself."""
    asked = [name for name in ("dp_noise", "dp_delta") if getattr(config, name) != _default(name)]
    if asked and not config.dp_clip:
        yield (
            f"{' and '.join(asked)} without dp_clip makes nothing private; give dp_clip, such as "
            "1.0"
        )
    if config.memory and config.precision != "fp32":
        yield (
            f"memory is {config.memory}, and precision {config.precision}; only float32 training "
            "is planned within a memory: leave one of the two away"
        )
    if config.stored_bits < 32 and config.precision != "fp32":
        yield (
            f"stored_bits is {config.stored_bits}, and precision {config.precision}; integers are "
            "stored in few bits already: leave one of the two away"
        )
    if bool(config.device_eval) != bool(config.validation_share):
        yield (
            f"device_eval is {config.device_eval} and validation_share {config.validation_share}; "
            "devices measure on what they hold out: give both, such as 1 and 0.2, or neither"
        )
    if config.devices_per_round > config.devices:
        yield (
            f"devices_per_round is {config.devices_per_round}, and there are {config.devices} "
            "devices; ask as many or fewer"
        )
    if config.over_selection and not config.devices_per_round:
        yield (
            f"over_selection is {config.over_selection}, and a round asks all devices; give "
            "devices_per_round"
        )
    if config.dp_clip and config.availability != "always":
        yield (
            "dp_clip needs availability always: a mean over those that happen to be there has no "
            "divisor that is known before"
        )


def _default(name: str) -> Any:
    return KEYS[name].default


# Files


def read_config(path: Path) -> dict[str, Any]:
    """Read a TOML file of configuration keys.

    Raises:
        ConfigError: The file is missing or no TOML.
    """
    import tomllib  # here: a device, whose keys come with messages, holds what it imports

    try:
        return tomllib.loads(read_whole(path, MOST_BYTES).decode())
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config file {path} is not valid TOML: {error}") from error
