from __future__ import annotations

import math
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.core.errors import QuantizationError, WireError
from fedkit.sparse.state import Masks, Shapes
from fedkit.wire.differences import decode_differences, encode_differences
from tests.naive.sparse import read_differences
from tests.sets import drawn, slow_but


@dataclass(frozen=True)
class CodecCase:
    """Values to code; `rows` are those of each channel of each parameter, kept ones only."""

    values: NDArray[np.float32]
    shapes: Shapes
    masks: Masks
    bits: int

    @property
    def blob(self) -> NDArray[np.uint8]:
        return encode_differences(self.values, self.shapes, self.masks, self.bits)

    def decode(self, blob: NDArray[np.uint8]) -> NDArray[np.float32]:
        return decode_differences(blob, self.shapes, self.masks, self.bits)

    @property
    def rows(self) -> list[list[NDArray[np.float32]]]:
        rest, found = list(self.values), []
        for name, shape in self.shapes.items():
            masked = self.masks[name].reshape(shape[0], -1) if name in self.masks else None
            counts = [math.prod(shape)] if masked is None else masked.sum(axis=1).tolist()
            parts = [[rest.pop(0) for _ in range(count)] for count in counts if count]
            found.append([np.array(part) for part in parts])
        assert not rest
        return found


def normal_case(bits: int = 4, density: float = 0.4, seed: int = 0) -> CodecCase:
    rng = np.random.default_rng(seed)
    shapes = {"conv": (6, 3, 2, 2), "bias": (6,), "empty": (4, 5), "linear": (5, 7)}
    masks = {name: rng.random(shapes[name]) < density for name in ("conv", "linear")}
    masks["empty"] = np.zeros(shapes["empty"], np.bool_)
    kept = sum(int(mask.sum()) for mask in masks.values()) + 6
    return CodecCase(rng.standard_normal(kept).astype(np.float32), shapes, masks, bits)


@st.composite
def cases(draw: st.DrawFn) -> CodecCase:
    """Models of up to four parameters; values of any size, of which channels have their own."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)
    shapes = {
        f"p{i}": shape for i, shape in enumerate(draw(st.lists(lengths, min_size=1, max_size=4)))
    }
    masks = {
        name: rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
        for name, shape in shapes.items()
        if draw(st.booleans())
    }
    kept = sum(int(masks[n].sum()) if n in masks else math.prod(s) for n, s in shapes.items())
    size = 10.0 ** draw(st.integers(-44, 37))
    spread = draw(st.sampled_from([0.0, 1.0, 6.0]))
    values = size * rng.standard_normal(kept) * 2.0 ** (-spread * rng.random(kept))
    return CodecCase(values.astype(np.float32), shapes, masks, draw(st.integers(2, 8)))


@given(cases())
def test_what_is_read_is_off_by_half_a_level_of_its_channel_at_most(case: CodecCase) -> None:
    decoded, most = case.decode(case.blob), 2 ** (case.bits - 1) - 1
    assert decoded.dtype == np.float32 and decoded.shape == case.values.shape
    bounds = []
    for rows in case.rows:
        largest = max((float(np.abs(row).max()) for row in rows), default=0.0)
        for row in rows:
            own = float(np.abs(row).max())
            # Whole octaves, counted: a logarithm would be rounded next to a power of two.
            octaves = next(e for e in range(8) if e == 7 or own * 2 ** (e + 1) > largest)
            scale = max(largest / most, 2.0**-126) * 2.0**-octaves
            bounds += [scale / 2] * len(row)
    slack = 1e-6 * np.abs(case.values.astype(np.float64)) + 1e-45
    assert (np.abs(decoded.astype(np.float64) - case.values) <= np.array(bounds) + slack).all()


@given(cases())
def test_a_reader_written_from_the_text_alone_reads_the_same(case: CodecCase) -> None:
    counts = [[len(row) for row in rows] for rows in case.rows]
    found = read_differences(case.blob.tobytes(), counts, case.bits)
    assert found == case.decode(case.blob).tolist()


@given(cases())
def test_a_message_takes_the_bits_it_says(case: CodecCase) -> None:
    channels = sum(len(rows) for rows in case.rows)
    expected = 2 + 4 * len(case.shapes) + math.ceil(3 * channels / 8)
    assert len(case.blob) == expected + math.ceil(case.bits * len(case.values) / 8)


@settings(max_examples=60)
@given(cases())
def test_values_that_are_levels_arrive_as_they_are(case: CodecCase) -> None:
    once = case.decode(case.blob)
    again = CodecCase(once, case.shapes, case.masks, case.bits)
    np.testing.assert_allclose(again.decode(again.blob), once, rtol=1e-6, atol=1e-44)


def test_a_channel_of_small_values_has_a_finer_scale() -> None:
    shapes, masks = {"w": (2, 3)}, {"w": np.ones((2, 3), np.bool_)}
    values = np.array([7.0, -3.0, 1.0, 0.07, -0.03, 0.01], np.float32)
    decoded = decode_differences(encode_differences(values, shapes, masks, 4), shapes, masks, 4)
    assert decoded[:3].tolist() == [7.0, -3.0, 1.0]
    np.testing.assert_allclose(decoded[3:], values[3:], atol=2**-7)
    flat = {"w": (6,)}
    coarse = decode_differences(encode_differences(values, flat, {}, 4), flat, {}, 4)
    assert coarse.tolist() == [7.0, -3.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_has_no_level_is_refused_by_its_sender(bad: float) -> None:
    case = normal_case()
    case.values[3] = bad
    with pytest.raises(WireError, match=r"1 of .* differences .* lower lr"):
        _ = case.blob


@pytest.mark.parametrize("bits", [1, 9])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(QuantizationError, match=r"values are stored in 2 \.\. 8"):
        _ = normal_case(bits).blob


# Damage


def test_a_code_of_other_bits_or_version_is_refused() -> None:
    case = normal_case(bits=4)
    with pytest.raises(WireError, match=r"in 4 bits; need version 1 in 5 bits: .* uplink_bits"):
        decode_differences(case.blob, case.shapes, case.masks, 5)
    newer = case.blob.copy()
    newer[0] = 2
    with pytest.raises(WireError, match="of version 2 in 4 bits; need version 1"):
        case.decode(newer)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_truncation_and_every_extension_is_refused(bits: int) -> None:
    case = normal_case(bits)
    for length in range(len(case.blob)):
        with pytest.raises(WireError, match="truncated"):
            case.decode(case.blob[:length])
    with pytest.raises(WireError, match="end at byte"):
        case.decode(np.append(case.blob, np.uint8(0)))


@pytest.mark.parametrize("bits", slow_but((2, 7), (2, 4, 7, 8)))
def test_every_altered_bit_is_refused_or_stays_within_the_levels(bits: int) -> None:
    case = normal_case(bits)
    refused = 0
    for bit in range(8 * len(case.blob)):
        altered = case.blob.copy()
        altered[bit // 8] ^= 1 << bit % 8
        try:
            found = case.decode(altered)
        except WireError as error:
            refused += "altered" in str(error)
        else:
            assert found.shape == case.values.shape and not np.isnan(found).any()
    assert refused > 0


@settings(max_examples=drawn(200))
@given(st.binary(max_size=120))
def test_random_bytes_are_refused_or_give_values(data: bytes) -> None:
    case = normal_case()
    blob = np.frombuffer(bytes([1, 4]) + data, np.uint8)
    try:
        found = case.decode(blob)
    except WireError as error:
        assert str(error)
    else:
        assert found.shape == case.values.shape


def test_a_short_message_for_a_large_model_costs_no_memory() -> None:
    shapes = {"bias": (10**7,)}
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="levels is truncated: 5000000 bytes"):
            decode_differences(np.array([1, 4, 0, 0, 128, 63, 0], np.uint8), shapes, {}, 4)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
