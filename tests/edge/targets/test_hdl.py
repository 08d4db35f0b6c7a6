"""The hardware's blocks give the numbers that they are defined by, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.targets.fpga import yosys
from fedkit.core.numerics import FixedPoint, multiply_half_up
from fedkit.integers.matmul import matmul
from fedkit.integers.per_channel import shiftquant
from tests.edge.targets.hdl import packed, signed, simulate
from tests.sets import slow_but

pytestmark = pytest.mark.skipif(
    yosys.obstacle("yosys") is not None, reason="needs yosys: pip install 'fedkit[bench]'"
)

LANES = 8


def test_requantize_rounds_as_the_contract_says() -> None:
    rng = np.random.default_rng(0)
    count = 4000
    ends = [-(2**31), 2**31 - 1, -1, 0, 1]
    sums = np.concatenate([rng.integers(-(2**31), 2**31, count), np.repeat(ends, 200)])
    sums >>= rng.integers(0, 31, len(sums))
    multiplier = rng.integers(0, 2**31, len(sums))
    multiplier[::3] = 1 << rng.integers(0, 31, len(multiplier[::3]))  # halves are common
    shift = rng.integers(1, 63, len(sums))
    exact = multiply_half_up(sums, FixedPoint(multiplier, shift))
    for offset, low, high in ((0, -128, 127), (-300, -128, 127), (100, -7, 60)):
        inputs = {"sum": sums, "multiplier": multiplier, "shift": shift}
        constant = {"offset": offset, "low": low, "high": high}
        inputs |= {name: np.full(len(sums), value) for name, value in constant.items()}
        found = signed(simulate("requantize", inputs, ["q"])["q"], 8)[9:]
        expected = np.clip(exact + offset, low, high)[: len(found)]
        assert np.array_equal(found, expected)
        assert len(np.unique(expected)) > 20


def run_array(
    x: NDArray[np.int64],
    weight: NDArray[np.int64],
    shift: NDArray[np.int64],
    bits: int,
    groups: int,
    shared: bool,
) -> NDArray[np.int64]:
    """Return what a sum over all rows [beats, lanes] comes to after each beat."""
    beats = len(x)
    delay = int(np.log2(LANES)) + int(np.ceil(np.log2(bits))) + 2 + (groups > 1)
    idle = np.zeros(delay, np.int64)
    shift_bits = max(1, int(np.ceil(np.log2(groups))))
    inputs = {
        "active": np.ones(beats),
        "first": np.arange(beats) == 0,
        "x": packed(x, bits),
        "weight": packed(weight, bits),
        "shift": packed(shift[:, :1] if shared else shift, shift_bits),
    }
    inputs = {name: np.concatenate([values, idle]) for name, values in inputs.items()}
    parameters = {"LANES": LANES, "BITS": bits, "WEIGHT": bits}
    parameters |= {"GROUPS": groups, "SHARED": int(shared)}
    return signed(simulate("shift_array", inputs, ["sum"], parameters)["sum"], 32)[
        delay : delay + beats
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "groups", "shared"),
    slow_but(
        ((8, 4, True),),
        ((8, 4, True), (4, 4, True), (2, 2, False), (5, 3, False), (8, 1, True)),
    ),
)
def test_the_array_is_shiftquants_product(bits: int, groups: int, shared: bool) -> None:
    rng = np.random.default_rng(bits)
    channels = LANES * 12
    gradient = rng.standard_normal((1, channels)) * np.exp2(-rng.uniform(0, 6, channels))
    quantized = shiftquant(gradient.astype(np.float32), bits, 1, 1, groups)
    order = np.argsort(quantized.shifts, kind="stable")
    if shared:  # a beat for channels of one group; what is left of a group is filled with zeros
        order = grouped(quantized.shifts.astype(np.int64))
    most = 2 ** (bits - 1) - 1
    weights = rng.integers(-most - 1, most + 1, (channels, 1)).astype(np.int8)
    x, w, s = (
        np.where(order >= 0, each[order], 0).reshape(-1, LANES)
        for each in (quantized.values[0], weights[:, 0], quantized.shifts)
    )
    if shared:
        s = np.repeat(s.max(1, keepdims=True), LANES, axis=1)
    sums = run_array(x, w, s, bits, groups, shared)
    assert sums[-1] == matmul(quantized, weights, "product")[0, 0]
    assert len(np.unique(quantized.shifts)) == groups
    partial = np.cumsum(((x.astype(np.int64) * w) << s).sum(1))
    assert np.array_equal(sums, partial)


def grouped(shifts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return channels in order of their groups, with -1 up to a multiple of the lanes each."""
    parts = []
    for shift in np.unique(shifts):
        members = np.flatnonzero(shifts == shift)
        parts += [members, np.full(-len(members) % LANES, -1)]
    return np.concatenate(parts)


def halves(rng: np.random.Generator, count: int) -> NDArray[np.uint16]:
    """Return half-precision numbers of unlike sizes, none subnormal."""
    exponent = rng.integers(1, 28, count) << 10
    sign, fraction = rng.integers(0, 2, count) << 15, rng.integers(0, 1024, count)
    numbers = (sign | exponent | fraction).astype(np.uint16)
    numbers[::17] = 0
    return numbers


def expected_half(real: NDArray[np.float64]) -> NDArray[np.uint16]:
    with np.errstate(over="ignore"):
        found = real.astype(np.float16)
    # Rounded to a subnormal number is zero.
    found = np.where(np.abs(found) < 2.0**-14, np.float16(0), found)
    return found.view(np.uint16)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "delay"), [("fp16_multiply", 7), ("fp16_add", 8)])
def test_half_precision(module: str, delay: int) -> None:
    rng = np.random.default_rng(0)
    a, b = halves(rng, 20000), halves(rng, 20000)
    b[:1000] = a[:1000] ^ 0x8000  # what cancels out
    b[1000:6000] = a[1000:6000] ^ rng.integers(0, 64, 5000).astype(np.uint16)
    port = "product" if module == "fp16_multiply" else "sum"
    found = simulate(module, {"a": a, "b": b}, [port])[port][delay:]
    left, right = (each.view(np.float16).astype(np.float64) for each in (a, b))
    real = left * right if module == "fp16_multiply" else left + right
    expected = expected_half(real)[: len(found)]
    # Values that are subnormal before they are rounded may become the smallest normal number.
    edge = np.abs(real[: len(found)]) < 2.0**-14
    actual = found.astype(np.uint16)
    same = (actual & 0x7FFF) == (expected & 0x7FFF)
    signs = (actual == expected) | (expected & 0x7FFF == 0)
    assert same[~edge].all() and signs[~edge].all()
    assert np.count_nonzero(~edge) > 10000


@pytest.mark.slow
def test_the_half_precision_array_sums_products() -> None:
    lanes, turns = 4, 8
    rng = np.random.default_rng(0)
    beats = 40
    x, w = (rng.integers(-8, 9, (beats, lanes)).astype(np.float16) for _ in range(2))
    delay = 7 + 8 * 2 + 8
    inputs = {
        "active": np.ones(beats),
        "first": np.arange(beats) < turns,
        "x": packed(x.view(np.int16), 16),
        "weight": packed(w.view(np.int16), 16),
    }
    inputs = {name: np.concatenate([v, np.zeros(delay, np.int64)]) for name, v in inputs.items()}
    sums = simulate("fp16_array", inputs, ["sum"], {"LANES": lanes})["sum"].astype(np.uint16)
    found = sums.view(np.float16)[delay + beats - turns : delay + beats]
    products = (x.astype(np.int64) * w.astype(np.int64)).sum(1)
    assert np.array_equal(found, products.reshape(-1, turns).sum(0))  # whole, so exact


@pytest.mark.parametrize("kind", slow_but(("l1",), ("l1", "l2")))
def test_statistics(kind: str) -> None:
    rng = np.random.default_rng(0)
    streams = [rng.integers(-128, 128, n) for n in (1, 2, 300, 40)]
    streams += [np.full(700, -128), np.full(3, 127)]
    wait = 24
    centres = rng.integers(-128, 128, len(streams))
    centres[-2] = 127
    x, first, last, valid, centre = (
        np.concatenate(parts)
        for parts in zip(
            *(
                (
                    np.append(values, np.zeros(wait, int)),
                    np.append([1], np.zeros(len(values) + wait - 1, int)),
                    np.concatenate([np.zeros(len(values) - 1, int), [1], np.zeros(wait, int)]),
                    np.append(np.ones(len(values), int), np.zeros(wait, int)),
                    np.full(len(values) + wait, own),
                )
                for values, own in zip(streams, centres, strict=True)
            ),
            strict=True,
        )
    )
    inputs = {"x": x, "first": first, "last": last, "valid": valid, "centre": centre}
    found = simulate(f"{kind}_statistic", inputs, ["sum", "deviation", "done"])
    done = found["done"] == 1
    done[0] = False  # nothing has been reset
    assert np.count_nonzero(done) == len(streams)
    assert signed(found["sum"][done], 25).tolist() == [int(s.sum()) for s in streams]
    distances = [s - c for s, c in zip(streams, centres, strict=True)]
    if kind == "l1":
        expected = [int(np.abs(d).sum()) for d in distances]
    else:
        expected = [int(np.floor(np.sqrt((d**2).sum()))) for d in distances]
    assert found["deviation"][done].tolist() == expected
