from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.errors import WireError
from fedkit.sparse import codec
from fedkit.sparse.state import Masks, apply_masks
from fedkit.sparse.topk import Entries
from tests.naive.sparse import entropy_bytes

SHAPES = {"a": (7, 3, 3, 3), "b": (40,), "c": (1,)}


def random_mask(size: int, density: float, seed: int) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = np.random.default_rng(seed).random(size) < density
    return mask


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Random masks of any density, and patterns that a gap code dislikes."""
    size = draw(st.integers(1, 3000))
    kind = draw(st.sampled_from(["random", "stripes", "half", "ends"]))
    if kind == "random":
        return random_mask(size, draw(st.floats(0, 1)), draw(st.integers(0, 99)))
    positions = np.arange(size)
    patterns = {
        "stripes": positions % draw(st.integers(1, 50)) == 0,
        "half": positions < size // 2,
        "ends": np.isin(positions, [0, size - 1]),
    }
    return np.asarray(patterns[kind])


@given(masks())
def test_any_mask_round_trips_and_never_costs_more_than_its_bits(mask: NDArray[np.bool_]) -> None:
    blob = codec.encode_masks({"m": mask})
    decoded = codec.decode_masks(blob, {"m": mask.shape})
    assert np.array_equal(decoded["m"], mask)
    assert len(blob) <= (mask.size + 7) // 8 + 9


@given(masks(), st.floats(0, 1))
def test_a_mask_change_round_trips(mask: NDArray[np.bool_], changed: float) -> None:
    base = {"m": mask ^ random_mask(mask.size, changed, 1)}
    blob = codec.encode_masks({"m": mask}, base)
    assert np.array_equal(codec.decode_masks(blob, {"m": mask.shape}, base)["m"], mask)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 0.99])
def test_random_masks_are_coded_within_three_percent_of_their_entropy(density: float) -> None:
    mask = random_mask(500_000, density, 0)
    bound = entropy_bytes(mask.size, int(mask.sum()))
    assert len(codec.encode_masks({"m": mask})) <= 1.03 * bound + 9


def random_state(density: float = 0.3) -> tuple[dict[str, NDArray[np.float32]], Masks]:
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


@pytest.mark.parametrize("density", [0.02, 0.5])
def test_every_truncation_is_refused_and_names_the_layer(density: float) -> None:
    mask = random_mask(600, density, 5)
    blob = codec.encode_masks({"layer7": mask})
    for length in range(len(blob)):
        with pytest.raises(WireError, match="layer7"):
            codec.decode_masks(blob[:length], {"layer7": mask.shape})
    with pytest.raises(WireError, match="end at byte"):
        codec.decode_masks(np.append(blob, np.uint8(0)), {"layer7": mask.shape})


@settings(max_examples=300)
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
