"""What one run is: every choice that shapes its numbers, validated once."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

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


class RunConfig(BaseModel):
    """Configuration of one run; the same keys in TOML, as CLI flags and as Flower run-config.

    A value of 0 in a key marked "0: automatic" means the stated rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: str = Field("digits", description="built-in task or package.module:name")
    model: str = Field("", description="zoo model instead of the task's, like resnet8")
    method: str = Field(
        "fedtiny", description="row of fedkit.methods.registry or package.module:name"
    )
    seed: int = Field(1, ge=0, description="seed of every random choice")
    engine: Literal["auto", "torch", "sparse"] = Field(
        "auto", description="what computes: sparse C kernels, dense torch, or sparse if it can"
    )
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "cpu",
        description="where torch computes: the processor, an accelerator, or one if it is there; "
        "the C engines know the processor alone",
    )
    precision: Literal["fp32", "int8", "int6", "int4"] = Field(
        "fp32", description="what training computes with: float32, or integers of so many bits"
    )
    stored_bits: int = Field(
        32,
        description="bits in which sparse training stores what its backward pass reads again: 32, "
        "16, 8 or 4",
    )
    memory: str = Field(
        "",
        description="most memory that a step of sparse training may take, such as 64MB; it stores "
        "as few bits as that needs, at most stored_bits; left empty, it takes what it needs",
    )

    devices: int = Field(10, ge=1, description="devices in the fleet")
    partition: PartitionKind = Field(
        "dirichlet", description="how training data is split over the devices"
    )
    partition_by: str = Field(
        "",
        description="column of the examples that natural-id and continuous go by: one that the "
        "task names, or targets (default: owners)",
    )
    strictness: float = Field(
        1.0, ge=0, le=1, description="how much of continuous is the column; the rest is chance"
    )
    alpha: float = Field(0.5, gt=0, description="Dirichlet concentration")
    min_size: int = Field(
        10, ge=1, description="examples each device of a dirichlet partition gets at least"
    )
    classes_per_device: int = Field(2, ge=1, description="classes of a pathological share")
    single_class: Literal["error", "allow"] = Field(
        "error",
        description="what to do when a device holds one class only, or training data lack one",
    )
    examples_per_device: int = Field(
        0, ge=0, description="use at most this many examples of each device (0: all)"
    )
    test_examples: int = Field(0, ge=0, description="measure on the first so many (0: all)")

    density: float = Field(0.1, gt=0, le=1, description="kept share of all prunable weights")
    exempt: str = Field("", description="layers kept dense: first, last or names, by commas")
    distribution: Literal["uniform", "erk"] = Field(
        "erk", description="relative density of the layers before noise"
    )
    noise: float = Field(0.5, ge=0, lt=1, description="half-width of layer-density noise")
    pool_size: int = Field(0, ge=0, description="candidates (0: 0.1 / density, at least 3)")
    selection: Literal["adaptive", "vanilla", "none"] = Field(
        "adaptive",
        description="candidates are ranked under re-estimated or the server's statistics, or the "
        "one without noise is taken",
    )
    development_share: float = Field(
        0.2, gt=0, le=1, description="share of device data that ranks candidates"
    )
    bn_merge: NormMerge = Field(
        "pooled",
        description="norm statistics of the fleet: moments pooled of devices that each normalise "
        "by their own batches, or their variances averaged; exact: those of BatchNorm over all "
        "data, by a message per level of norms, for candidates and the last model; exact-last: for "
        "the last model alone",
    )
    server_share: float = Field(
        0.05, ge=0, lt=1, description="share of training data that is the server's own"
    )
    server_epochs: int = Field(20, ge=0, description="epochs of pre-training on it")
    sparse_epochs: int = Field(
        20,
        ge=0,
        description="epochs of the sparse model on it: FedTiny prunes on the way, others tune",
    )
    pruning: Literal["gradual", "once"] = Field(
        "gradual", description="FedTiny's server prunes over those epochs, or once and then tunes"
    )

    rounds: int = Field(30, ge=1, description="communication rounds")
    wire: Literal["fp32", "fp16"] = Field("fp32", description="width of the values that travel")
    uplink_bits: int = Field(
        0,
        ge=0,
        le=8,
        description="devices send what they changed in 2 .. 8 bits per value (0: whole)",
    )
    epochs: int = Field(5, ge=1, description="local epochs per round")
    batch_size: int = Field(64, ge=1, description="local batch size")
    lr: float = Field(0.1, gt=0, description="learning rate of the first round")
    lr_final: float = Field(0.01, gt=0, description="learning rate of the last (cosine between)")
    momentum: float = Field(0.9, ge=0, lt=1, description="local momentum, fresh each round")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty on the kept weights")

    adjust_every: int = Field(0, ge=0, description="rounds between adjustments (0: rounds / 30)")
    adjust_stop: int = Field(
        0, ge=0, description="round where the quota has fallen to 0 (0: rounds / 3)"
    )
    adjust_share: float = Field(0.3, ge=0, le=1, description="largest share of a layer swapped")
    adjust_examples: int = Field(256, ge=1, description="examples behind one gradient top-k")
    blocks: int = Field(5, ge=1, description="contiguous blocks that take turns")
    granularity: Literal["layer", "block", "entire"] = Field(
        "block", description="what one adjustment changes: a layer, a block or the entire model"
    )
    order: Literal["backward", "forward"] = Field(
        "backward", description="whose turn is first: the output's or the input's"
    )

    train: str = Field(
        "all",
        min_length=1,
        description="weights that devices train: all, norm, head, norm+head or a regular "
        "expression of names; the others are sent once and stay as they began",
    )
    local: str = Field(
        "",
        description="tensors that each device keeps to itself: norm, head, norm+head or a regular "
        "expression of names (default: none)",
    )
    backbone: str = Field(
        "", description="run folder whose last model is the dense start, instead of pre-training"
    )

    aggregation: Aggregation = Field(
        "mean",
        description="devices merge by their numbers of examples, or all alike and robustly",
    )
    max_change: float = Field(
        100.0,
        ge=0,
        description="refuse a device whose model moved by more norms of the one sent (0: never)",
    )
    max_examples: int = Field(
        0, ge=0, description="refuse a device that claims more examples (0: never)"
    )
    dp_clip: float = Field(
        0.0,
        ge=0,
        description="differential privacy of devices, one of which is added or removed: clip the "
        "change of each to this norm (0: none)",
    )
    dp_noise: float = Field(
        1.0,
        ge=0,
        description="its noise on the sum of all devices' changes, in clipping norms; the sum is "
        "divided by the devices that a round asks, not only those that answer",
    )
    dp_delta: float = Field(1e-5, gt=0, lt=1, description="delta of the epsilon that is reported")
    devices_per_round: int = Field(
        0,
        ge=0,
        description="devices that each round asks, drawn at random (0: all); in a private run "
        "each is asked by chance, and so many are asked on average",
    )
    over_selection: float = Field(
        0.0,
        ge=0,
        le=10,
        description="further devices that each round asks, as a share of devices_per_round; it "
        "closes with the first devices_per_round answers",
    )
    availability: str = Field(
        "always",
        description="which devices are there in a round: always, random:SHARE, "
        "cycle:ROUNDS:SHARE (day and night) or trace:FILE (lines device,first round,last round)",
    )
    min_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the devices asked whose answers a step needs; the others are left "
        "out",
    )
    deadline: float = Field(
        3600.0, gt=0, le=1e9, description="seconds that a step waits for devices over Flower"
    )
    quarantine_after: int = Field(
        3, ge=1, description="refused answers after which a device is not asked again"
    )

    measure_every: int = Field(
        1, ge=1, description="rounds between measurements on the test data; the last is measured"
    )
    device_eval: int = Field(
        0,
        ge=0,
        description="rounds between measurements by devices, on data they hold out; the last is "
        "measured (0: none)",
    )
    validation_share: float = Field(
        0.0, ge=0, lt=1, description="share of its examples that a device holds out for that"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticCustomError("truth", "no key takes true or false")
        return value

    @field_validator("*")
    @classmethod
    def _fits_every_place_it_goes_to(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what torch, a TOML file, a clock or a terminal could not hold."""
        if isinstance(value, str) and not (value.isprintable() and len(value) <= MOST_TEXT):
            raise PydanticCustomError(
                "text", "text must be one line of at most {most} characters", {"most": MOST_TEXT}
            )
        most = MOST_SEED if info.field_name == "seed" else MOST[type(value) is int]
        if isinstance(value, int | float) and not (value == 0 or LEAST <= abs(value) <= most):
            raise PydanticCustomError(
                "size",
                "a number other than 0 must be in {least} .. {most}",
                {"least": LEAST, "most": most},
            )
        return value

    @field_validator("stored_bits")
    @classmethod
    def _values_are_stored_in_whole_bytes_or_halves(cls, bits: int) -> int:
        if bits not in (32, 16, 8, 4):
            raise PydanticCustomError("bits", "give 32, 16, 8 or 4")
        return bits

    @field_validator("memory")
    @classmethod
    def _memory_is_a_size(cls, memory: str) -> str:
        try:
            if memory:
                parse_bytes(memory)
        except ValueError as error:
            raise PydanticCustomError("memory", "{why}", {"why": str(error)}) from None
        return memory

    @field_validator("uplink_bits")
    @classmethod
    def _one_bit_holds_no_sign_and_zero(cls, bits: int) -> int:
        if bits == 1:
            raise PydanticCustomError(
                "bits", "one bit holds no number and its opposite; give 2 .. 8, or 0"
            )
        return bits

    @field_validator("dp_clip")
    @classmethod
    def _float32_holds_what_is_clipped(cls, norm: float) -> float:
        if norm and not 1e-12 <= norm <= 1e12:
            raise PydanticCustomError("clip", "clip to a norm of 1e-12 .. 1e12, or 0 for none")
        return norm

    @model_validator(mode="after")
    def _noise_is_not_added_to_what_is_not_clipped(self) -> Self:
        asked = [key for key in ("dp_noise", "dp_delta") if getattr(self, key) != _default(key)]
        if asked and not self.dp_clip:
            raise PydanticCustomError(
                "private",
                "{keys} without dp_clip makes nothing private; give dp_clip, such as 1.0",
                {"keys": " and ".join(asked)},
            )
        return self

    @property
    def engine_wishes(self) -> tuple[Any, ...]:
        """What an engine is chosen by, in the order of `fedkit.engine.choose.make_engine`."""
        stored = self.stored_bits, self.accelerator, self.memory_bytes
        return self.engine, self.precision, *stored

    @property
    def memory_bytes(self) -> int | None:
        """Most bytes of a step; None: what it needs."""
        return parse_bytes(self.memory) if self.memory else None

    @model_validator(mode="after")
    def _integers_are_stored_as_they_are(self) -> Self:
        if self.memory and self.precision != "fp32":
            raise PydanticCustomError(
                "stored",
                "memory is {memory}, and precision {precision}; only float32 training is planned "
                "within a memory: leave one of the two away",
                {"memory": self.memory, "precision": self.precision},
            )
        if self.stored_bits < 32 and self.precision != "fp32":
            raise PydanticCustomError(
                "stored",
                "stored_bits is {bits}, and precision {precision}; integers are stored in few bits "
                "already: leave one of the two away",
                {"bits": self.stored_bits, "precision": self.precision},
            )
        return self

    @model_validator(mode="after")
    def _what_is_held_out_is_measured_on(self) -> Self:
        if bool(self.device_eval) != bool(self.validation_share):
            raise PydanticCustomError(
                "held_out",
                "device_eval is {every} and validation_share {share}; devices measure on what they "
                "hold out: give both, such as 1 and 0.2, or neither",
                {"every": self.device_eval, "share": self.validation_share},
            )
        return self

    @model_validator(mode="after")
    def _a_round_asks_devices_that_there_are(self) -> Self:
        if self.devices_per_round > self.devices:
            raise PydanticCustomError(
                "participation",
                "devices_per_round is {asked}, and there are {devices} devices; ask as many or "
                "fewer",
                {"asked": self.devices_per_round, "devices": self.devices},
            )
        if self.over_selection and not self.devices_per_round:
            raise PydanticCustomError(
                "participation",
                "over_selection is {share}, and a round asks all devices; give devices_per_round",
                {"share": self.over_selection},
            )
        if self.dp_clip and self.availability != "always":
            raise PydanticCustomError(
                "private",
                "dp_clip needs availability always: a mean over those that happen to be there has "
                "no divisor that is known before",
            )
        return self

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


def _default(key: str) -> Any:
    return RunConfig.model_fields[key].default


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Validate keys and values.

    Raises:
        ConfigError: Names every bad key with the nearest allowed ones, and every bad value with
            its rule.
    """
    if wrong := [key for key in values if not isinstance(key, str)]:
        raise ConfigError(f"key {short(wrong[0])} is not text; keys are names like density")
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(item) for item in error.errors())) from None


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, RunConfig.model_fields, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key {short(key)}; {hint}allowed: {', '.join(RunConfig.model_fields)}"
    rule = str(item["msg"][0].lower() + item["msg"][1:])
    if not key:  # a rule about several keys names them itself
        return rule
    return f"{key} is {short(item['input'])}: {rule} ({RunConfig.model_fields[key].description})"


def read_config(path: Path) -> dict[str, Any]:
    """Read a TOML file of configuration keys.

    Raises:
        ConfigError: The file is missing or no TOML.
    """
    try:
        return tomllib.loads(read_whole(path, MOST_BYTES).decode())
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config file {path} is not valid TOML: {error}") from error
