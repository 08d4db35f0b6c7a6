"""The integer ops by the compiled kernels. Tensors lie in one arena, as in the sparse engine."""

from __future__ import annotations

import math
from ctypes import byref, c_int, c_int64, c_void_p
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.constants import CODE, Chain, Ints, Mix, Read, Requantisation, to_int32
from fedkit.engine.integer.integer_network import IntegerNetwork
from fedkit.engine.kernels import int_native
from fedkit.engine.kernels.native import Kernels
from fedkit.engine.kernels.structs import pointer
from fedkit.engine.plan.execution import Forward, Key, Schedule, Step, place, touched
from fedkit.engine.plan.structure import Plan, PlanOp

_CARRIERS = {"none": 0, "x": 1, "sign": 2, "hat": 1}
_BYTES = {"x": 1, "raw": 2, "g": 2}
_FIELDS = {"x": "x", "raw": "raw", "g": "gradient"}
_ALIGN = 64

AnyOp = TypeVar("AnyOp", bound=PlanOp)
Sums = NDArray[np.int64]


class NativeBackend:
    """Implements `fedkit.engine.integer.backend.Backend`.

    Args:
        network: The model and its weights.
        kernels: The compiled kernels.
        schedule: What is to run.
        batch: Most examples of one batch.

    Attributes:
        lanes: Examples of a tile.
        tensors: The struct of each tensor.
        examples: Of the batch.
        tiles: Of the batch.
        most_tiles: Of the largest batch.
        scratch: Address of the memory that ops reserved; each may use all of it.
    """

    def __init__(
        self, network: IntegerNetwork, kernels: Kernels, schedule: Schedule, batch: int
    ) -> None:
        self.network, self.plan, self.kernels = network, network.plan, kernels
        self.lanes = network.lanes
        self.examples = self.tiles = 0
        self.most_tiles = -(-batch // self.lanes)
        self._places, self._peak = place(self.plan, schedule, self._size, _touched)
        self._reserved = 0
        self.scratch = c_void_p()
        self.tensors = [
            int_native.IntTensor(channels=tensor.shape[0], plane=math.prod(tensor.shape[1:]))
            for tensor in self.plan.tensors
        ]

    # Memory

    def _size(self, key: Key) -> int:
        kind, tensor = key
        count = self.most_tiles * math.prod(self.plan.tensors[tensor].shape) * self.lanes
        return -(-count * _BYTES[kind] // _ALIGN) * _ALIGN

    def reserve(self, size: int) -> None:
        """Ask for so many bytes of scratch; only before `ready`."""
        self._reserved = max(self._reserved, size)

    def reserve_plane(self, tensor: int) -> None:
        """Ask for a plane of int32 of a tensor, for sums; only before `ready`."""
        self.reserve(4 * self.lanes * self.tensors[tensor].plane)

    def ready(self) -> None:
        """See `Backend`. One arena holds the tensors, then the scratch."""
        self._arena = np.zeros(self._peak + self._reserved + 2 * _ALIGN, np.int8)
        begin = self._arena.ctypes.data
        begin += -begin % _ALIGN
        self.scratch = c_void_p(begin + self._peak)
        for (kind, tensor), offset in self._places.items():
            setattr(self.tensors[tensor], _FIELDS[kind], begin + offset)

    # Running

    def begin(self, examples: int) -> None:
        """See `Backend`."""
        self.tiles = -(-examples // self.lanes)
        self.examples = examples
        for tensor in self.tensors:
            tensor.examples = examples

    def load(self, inputs: NDArray[np.int8], order: NDArray[np.int64]) -> None:
        """See `Backend`."""
        order = np.ascontiguousarray(order, np.int64)
        self.kernels.int_load_examples(
            c_void_p(pointer(inputs)),
            c_void_p(pointer(order)),
            c_int64(len(order)),
            c_int64(int(np.prod(self.plan.tensors[0].shape))),
            c_void_p(self.tensors[0].x),
        )

    def raw_sums(self, tensor: int) -> tuple[Sums, Ints]:
        """See `Backend`."""
        sums, peak = self.zeros(tensor, np.int64), self.zeros(tensor, np.int32)
        self.kernels.int_raw_sums(self.tensor(tensor), 0, self.tiles, address(sums), address(peak))
        return sums, peak

    def raw_squares(self, tensor: int) -> tuple[Sums, Sums]:
        """See `Backend`."""
        sums, squares = self.zeros(tensor, np.int64), self.zeros(tensor, np.int64)
        self.kernels.int_raw_squares(
            self.tensor(tensor), 0, self.tiles, address(sums), address(squares)
        )
        return sums, squares

    def raw_spread(self, tensor: int, centre: Ints) -> Sums:
        """See `Backend`."""
        sums = self.zeros(tensor, np.int64)
        self.kernels.int_raw_spread(
            self.tensor(tensor), address(centre), 0, self.tiles, address(sums)
        )
        return sums

    def requantise(self, tensor: int, how: Requantisation) -> None:
        """See `Backend`."""
        arrays = (how.centre, how.a, how.b, how.shift)
        self.kernels.int_requantise(
            self.tensor(tensor), *(address(array) for array in arrays), 0, self.tiles
        )

    def read_squares(self, tensor: int, read: Read) -> Sums:
        """See `Backend`."""
        sums = self.zeros(tensor, np.int64)
        self.kernels.int_read_squares(
            self.tensor(tensor), byref(read_struct(read)), 0, self.tiles, address(sums)
        )
        return sums

    def raw_rows(self, tensor: int) -> NDArray[np.int16]:
        """See `Backend`."""
        rows = np.empty((self.examples, *self.plan.tensors[tensor].shape), np.int16)
        self._copy_rows(tensor, self.tensors[tensor].raw, rows, 1)
        return rows

    def codes(self, tensor: int) -> NDArray[np.int8]:
        """See `Backend`."""
        rows = np.empty((self.examples, *self.plan.tensors[tensor].shape), np.int8)
        self.kernels.int_read_codes(self.tensor(tensor), address(rows))
        return rows

    def set_gradient(self, tensor: int, gradient: NDArray[np.int16]) -> None:
        """See `Backend`."""
        rows = np.ascontiguousarray(gradient, np.int16)
        self._copy_rows(tensor, self.tensors[tensor].gradient, rows, 0)

    def gradient_rows(self, tensor: int) -> NDArray[np.int16]:
        """Return the gradient of a tensor, [n, channels, height, width]."""
        rows = np.empty((self.examples, *self.plan.tensors[tensor].shape), np.int16)
        self._copy_rows(tensor, self.tensors[tensor].gradient, rows, 1)
        return rows

    def set_raw(self, tensor: int, raw: NDArray[np.int16]) -> None:
        """Take what an op wrote, [n, channels, height, width]."""
        rows = np.ascontiguousarray(raw, np.int16)
        self._copy_rows(tensor, self.tensors[tensor].raw, rows, 0)

    def _copy_rows(self, tensor: int, tiles: int, rows: NDArray[np.int16], to_rows: int) -> None:
        self.kernels.int_copy_rows(
            self.tensor(tensor), c_void_p(tiles), address(rows), c_int(to_rows)
        )

    def share_gradient(self, tensor: int, source: int) -> None:
        """See `Backend`. The two lie in the same memory."""

    def finish(self, tensor: int, read: Read | None) -> tuple[Sums, Ints]:
        """See `Backend`."""
        sums, peak = np.zeros((self._channels(tensor), 5), np.int64), self.zeros(tensor, np.int32)
        bounds = (None, None) if read is None else active_codes(read)
        self.kernels.int_finish(
            *(self.tensor(tensor), *(None if b is None else address(b) for b in bounds)),
            *(0, self.tiles, address(sums), address(peak)),
        )
        return sums, peak

    def passed_peak(self, tensor: int, chain: Chain) -> Ints:
        """See `Backend`."""
        peak = self.zeros(tensor, np.int32)
        self.kernels.int_passed_peak(
            self.tensor(tensor), byref(chain_struct(chain)), 0, self.tiles, address(peak)
        )
        return peak

    # Parts

    def _channels(self, tensor: int) -> int:
        return self.plan.tensors[tensor].shape[0]

    def zeros(self, tensor: int, dtype: type[np.generic]) -> NDArray[Any]:
        """Return a zero per channel."""
        return np.zeros(self._channels(tensor), dtype)

    def tensor(self, tensor: int) -> Any:
        """Return a tensor's struct as an argument."""
        return byref(self.tensors[tensor])


class NativeOp(Generic[AnyOp]):
    """A base of what computes one op by kernels.

    Args:
        op: The op.
        number: Its number in the plan.
        backend: Holds the tensors, whose memory there is once it is `ready`.
    """

    def __init__(self, op: AnyOp, number: int, backend: NativeBackend) -> None:
        self.op, self.number, self.backend = op, number, backend

    def set_mix(self, struct: Any, source: int, mix: Mix | None) -> None:
        """Say in an op's struct how its kernel gives a tensor a gradient.

        Args:
            struct: With fields mix and accumulate.
            source: The tensor.
            mix: How it is added to what is there, if something is; the caller keeps it alive.
        """
        self._zeros = self.backend.zeros(source, np.int32)  # alive while the kernel runs
        none = Mix(self._zeros, self._zeros, self._zeros)
        struct.mix, struct.accumulate = mix_struct(mix or none), mix is not None


def _touched(plan: Plan, step: Step) -> list[Key]:
    """Return what a step reads or writes; an op writes raw, which is requantised at its end."""
    keys = touched(plan, step)
    if isinstance(step, Forward):
        keys.append(("raw", plan.ops[step.op].target))
    return keys


def address(array: NDArray[Any]) -> c_void_p:
    """Return an array's address as an argument; the caller keeps the array alive."""
    return c_void_p(pointer(array))


def active_codes(read: Read) -> tuple[Ints, Ints]:
    """Return per channel the first and the last code that a read is active for; they are a run."""
    return _codes_between(read, read.start.astype(np.int64) + 1, read.end.astype(np.int64) - 1)


def unclipped_codes(read: Read) -> tuple[Ints, Ints]:
    """Return per channel the first and the last code whose result is within +-high."""
    shift = read.shift.astype(np.int64)
    half = np.left_shift(1, shift) >> 1
    low = (1 - read.high << shift) - half if read.low < 0 else np.full_like(shift, -(2**40))
    return _codes_between(read, low, (read.high << shift) - half - 1)


def _codes_between(
    read: Read, low: NDArray[np.int64], high: NDArray[np.int64]
) -> tuple[Ints, Ints]:
    """Return per channel the first and the last code x with low <= a * x + b <= high."""
    a, b = read.a.astype(np.int64), read.b.astype(np.int64)
    # What a negative `a` leads to comes from the other end.
    least, most = np.where(a < 0, high, low), np.where(a < 0, low, high)
    some = np.where(a == 0, 1, a)
    first, last = -((b - least) // some), (most - b) // some
    fits = (low <= b) & (b <= high)
    first = np.where(a == 0, np.where(fits, -CODE, CODE + 1), first)
    last = np.where(a == 0, CODE, last)
    return to_int32(np.clip(first, -CODE, CODE + 1)), to_int32(np.clip(last, -CODE - 1, CODE))


def read_struct(read: Read) -> int_native.IntRead:
    """Return the struct; the caller keeps the arrays alive."""
    return int_native.IntRead(
        a=pointer(read.a),
        b=pointer(read.b),
        shift=pointer(read.shift),
        low=read.low,
        high=read.high,
    )


def chain_struct(chain: Chain) -> int_native.IntChain:
    """Return the struct; the caller keeps the arrays alive."""
    key = chain.key or 0
    return int_native.IntChain(
        a=pointer(chain.a),
        b=pointer(chain.b),
        c=pointer(chain.c),
        shift=pointer(chain.shift),
        factor=pointer(chain.factor),
        carrier=_CARRIERS[chain.carrier],
        limit=chain.limit,
        random=chain.key is not None,
        key_low=key & 0xFFFFFFFF,
        key_high=key >> 32,
    )


def mix_struct(mix: Mix) -> int_native.IntMix:
    """Return the struct; the caller keeps the arrays alive."""
    return int_native.IntMix(a=pointer(mix.a), b=pointer(mix.b), shift=pointer(mix.shift))
