from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.methods.fedtiny.progressive import merge_entries
from fedkit.sparse.state import weighted_mean
from fedkit.sparse.topk import Entries

Floats = NDArray[np.float32]


def assert_is_the_mean(found: Floats, parts: list[Floats], shares: list[float]) -> None:
    """Half a step of float32, and what sums of float64 round off."""
    for index, value in enumerate(found):
        terms = [
            Fraction(float(part[index])) * Fraction(share)
            for part, share in zip(parts, shares, strict=True)
        ]
        exact = sum(terms, Fraction(0))
        step = Fraction(float(np.spacing(np.abs(np.float32(exact)))))
        lost = 2 * len(terms) * sum(map(abs, terms)) / 2**53
        assert abs(Fraction(float(value)) - exact) <= step / 2 + lost


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Floats], list[float]]:
    """Values of a few devices that nearly cancel, and their shares of all examples."""
    devices = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sign = np.where(np.arange(devices) % 2, -1.0, 1.0)[:, None]
    values = sign * (1 + rng.standard_normal((devices, 20)) * draw(st.sampled_from([1e-6, 1.0])))
    examples = rng.integers(1, 1000, devices)
    return list(values.astype(np.float32)), [int(n) / int(examples.sum()) for n in examples]


@settings(deadline=None)
@given(fleets())
def test_means_of_weights_are_sums_of_float64(fleet: tuple[list[Floats], list[float]]) -> None:
    parts, shares = fleet
    found = weighted_mean([{"w": part} for part in parts], shares)["w"]
    assert found.dtype == np.float32
    assert_is_the_mean(found, parts, shares)


@settings(deadline=None)
@given(fleets(), st.booleans())
def test_means_of_entries_are_sums_of_float64(
    fleet: tuple[list[Floats], list[float]], alike: bool
) -> None:
    """Devices that sent the same positions, and devices of which each lacks one."""
    parts, shares = fleet
    kept = [np.arange(20) != (20 if alike else k) for k in range(len(parts))]
    sent = [{"w": Entries(np.flatnonzero(k), p[k])} for k, p in zip(kept, parts, strict=True)]
    merged = merge_entries(sent, shares)["w"]
    whole = [np.where(k, p, np.float32(0)) for k, p in zip(kept, parts, strict=True)]
    present = [part[merged.indices] for part in whole]
    assert merged.values.dtype == np.float32
    assert_is_the_mean(merged.values, present, shares)
