from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.core.errors import WireError
from fedkit.sparse.state import Masks, Weights, apply_masks
from fedkit.sparse.topk import Entries
from fedkit.wire import codec
from tests.naive.sparse import coded_bytes, decode_blob, entropy_bytes
from tests.sets import drawn

SHAPES = {"a": (7, 3, 3, 3), "b": (40,), "c": (1,)}


def random_mask(size: int, density: float, seed: int) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = np.random.default_rng(seed).random(size) < density
    return mask


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Random masks of any density, and patterns that a gap code dislikes."""
    size = draw(st.sampled_from([0, 1, 7, 8, 9]) | st.integers(1, 3000))
    kinds = ["random", "stripes", "half", "ends", "none", "one", "runs", "far apart"]
    kind = draw(st.sampled_from(kinds))
    if kind == "random":
        return random_mask(size, draw(st.floats(0, 1)), draw(st.integers(0, 99)))
    if kind == "far apart":
        size += 100_000
    positions = np.arange(size)
    patterns = {
        "stripes": positions % draw(st.integers(1, 50)) == 0,
        "half": positions < size // 2,
        "ends": np.isin(positions, [0, size - 1]),
        "none": positions < 0,
        "one": positions == draw(st.integers(0, max(0, size - 1))),
        "runs": positions // draw(st.integers(1, 70)) % 2 == 1,
        "far apart": np.isin(positions, draw(st.lists(st.integers(0, size), max_size=3))),
    }
    return np.asarray(patterns[kind] ^ draw(st.booleans()))


models = st.lists(masks(), max_size=4).map(lambda parts: {f"l{i}": p for i, p in enumerate(parts)})
"""Masks of up to four layers."""


def shapes_of(layers: Masks) -> dict[str, tuple[int, ...]]:
    return {name: mask.shape for name, mask in layers.items()}


def assert_equal_masks(found: Masks, expected: Masks) -> None:
    assert list(found) == list(expected)
    for name, mask in expected.items():
        assert found[name].dtype == np.bool_
        assert np.array_equal(found[name], mask), name


@given(models)
def test_the_masks_of_any_model_round_trip(layers: Masks) -> None:
    decoded = codec.decode_masks(codec.encode_masks(layers), shapes_of(layers))
    assert_equal_masks(decoded, layers)


@given(models, st.floats(0, 1), st.integers(0, 99))
def test_mask_changes_of_any_model_round_trip(layers: Masks, changed: float, seed: int) -> None:
    base = {name: mask ^ random_mask(mask.size, changed, seed) for name, mask in layers.items()}
    decoded = codec.decode_masks(codec.encode_masks(layers, base), shapes_of(layers), base)
    assert_equal_masks(decoded, layers)


@settings(max_examples=60)
@given(models)
def test_a_reader_written_from_the_text_alone_reads_what_is_written(layers: Masks) -> None:
    blob = codec.encode_masks(layers).tobytes()
    decoded = decode_blob(blob, [mask.size for mask in layers.values()])
    assert decoded == [mask.tolist() for mask in layers.values()]


@settings(max_examples=40)
@given(masks())
def test_of_all_codes_the_shortest_is_written(mask: NDArray[np.bool_]) -> None:
    assert len(codec.encode_masks({"m": mask})) == coded_bytes(mask.tolist())


@given(masks())
def test_no_mask_costs_more_than_its_bits_and_a_header(mask: NDArray[np.bool_]) -> None:
    assert len(codec.encode_masks({"m": mask})) <= (mask.size + 7) // 8 + 5


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 0.99])
def test_random_masks_are_coded_within_three_percent_of_their_entropy(density: float) -> None:
    mask = random_mask(500_000, density, 0)
    bound = entropy_bytes(mask.size, int(mask.sum()))
    assert len(codec.encode_masks({"m": mask})) <= 1.03 * bound + 9


def random_state(density: float = 0.3) -> tuple[Weights, Masks]:
    rng = np.random.default_rng(3)
    weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
    kept = {n: rng.random(SHAPES[n]) < density for n in ("a", "b")}
    return apply_masks(weights, kept), kept


def test_wire_density_is_mask_density_and_pruned_weights_are_zero() -> None:
    weights, kept = random_state()
    values = codec.encode_values(weights, kept)
    assert len(values) == sum(int(m.sum()) for m in kept.values()) + 1  # "c" has no mask
    decoded = codec.decode_values(values, SHAPES, kept)
    for name in SHAPES:
        assert decoded[name].tobytes() == weights[name].tobytes()
    assert all((decoded[name][~mask] == 0).all() for name, mask in kept.items())


@given(models)
def test_entries_at_any_positions_round_trip(layers: Masks) -> None:
    rng = np.random.default_rng(0)
    found = {name: np.flatnonzero(mask) for name, mask in layers.items()}
    entries = {
        name: Entries(indices, rng.standard_normal(len(indices)).astype(np.float32))
        for name, indices in found.items()
    }
    shapes = shapes_of(layers)
    decoded = codec.decode_entries(*codec.encode_entries(entries, shapes), shapes)
    assert list(decoded) == list(entries)
    for name, expected in entries.items():
        assert decoded[name].indices.tolist() == expected.indices.tolist()
        assert decoded[name].values.tobytes() == expected.values.tobytes()


def test_entries_round_trip() -> None:
    entries = {
        "a": Entries(np.array([0, 5, 188]), np.array([1, -2, 3], np.float32)),
        "b": Entries(np.array([], np.int64), np.array([], np.float32)),
    }
    blob, values = codec.encode_entries(entries, SHAPES)
    decoded = codec.decode_entries(blob, values, {n: SHAPES[n] for n in entries})
    for name, expected in entries.items():
        assert decoded[name].indices.tolist() == expected.indices.tolist()
        assert decoded[name].values.tolist() == expected.values.tolist()


@settings(max_examples=drawn(300))
@given(masks(), st.data())
def test_an_altered_byte_is_refused_by_layer_or_gives_a_mask(
    mask: NDArray[np.bool_], data: st.DataObject
) -> None:
    blob = codec.encode_masks({"layer7": mask}).copy()
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = codec.decode_masks(blob, {"layer7": mask.shape})
    except WireError as error:
        assert "layer7" in str(error) or "masks end at byte" in str(error)
    else:
        assert decoded["layer7"].shape == mask.shape


MOST = 2**32 - 1
HOSTILE = {
    "claims 4294967295 positions": struct.pack("<BI", 127, MOST),
    "claims a unary part of 4294967295 bytes": struct.pack("<BII", 0, 1, MOST),
    "claims a unary part of 1000000 bytes": struct.pack("<BII", 2, 5, 10**6) + bytes(10**6),
    "uses Rice parameter 126": struct.pack("<BII", 126, 1, 1) + b"\x80",
    "is truncated: 4000 bytes": struct.pack("<BII", 32, 1000, 125) + b"\xff" * 125,
    "codes 0": struct.pack("<BII", 0, 1000, 125) + bytes(125),
    "holds position 4294967295": struct.pack("<BII", 32, 1, 1) + b"\x80" + b"\xff" * 4,
}


@pytest.mark.parametrize("expected", HOSTILE)
def test_a_hostile_header_is_refused_before_it_costs_memory(expected: str) -> None:
    blob = np.frombuffer(HOSTILE[expected], np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=f"layer7.* {expected}"):
            codec.decode_masks(blob, {"layer7": (1000,)})
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("density", [0.02, 0.5])
def test_every_truncation_is_refused_and_names_the_layer(density: float) -> None:
    mask = random_mask(600, density, 5)
    blob = codec.encode_masks({"layer7": mask})
    for length in range(len(blob)):
        with pytest.raises(WireError, match="layer7"):
            codec.decode_masks(blob[:length], {"layer7": mask.shape})
    with pytest.raises(WireError, match="end at byte"):
        codec.decode_masks(np.append(blob, np.uint8(0)), {"layer7": mask.shape})


@settings(max_examples=drawn(300))
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_give_a_mask(data: bytes) -> None:
    try:
        decoded = codec.decode_masks(np.frombuffer(data, np.uint8), {"m": (500,)})
    except WireError as error:
        assert str(error)
    else:
        assert decoded["m"].shape == (500,)


def test_wrong_number_or_kind_of_values_is_refused() -> None:
    weights, kept = random_state()
    values = codec.encode_values(weights, kept)
    bad: Any
    for bad in (values[:-1], values.astype(np.float64), values[:, None]):
        with pytest.raises(WireError, match="disagree about model or mask"):
            codec.decode_values(bad, SHAPES, kept)
    poisoned = values.copy()
    poisoned[2] = np.nan
    with pytest.raises(WireError, match=r"1 of .* NaN"):
        codec.decode_values(poisoned, SHAPES, kept)


def test_positions_without_a_value_each_are_refused() -> None:
    blob, values = codec.encode_entries(
        {"b": Entries(np.array([1, 2]), np.array([1, 2], np.float32))}, SHAPES
    )
    with pytest.raises(WireError, match="2 positions arrived with 1 values"):
        codec.decode_entries(blob, values[:1], {"b": SHAPES["b"]})
