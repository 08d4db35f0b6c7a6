from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.sparse import bits

Flags = NDArray[np.bool_]


@st.composite
def flags(draw: st.DrawFn) -> Flags:
    """Any number of flags, of which few, half or all are set."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random(draw(st.integers(0, 300))) < draw(st.sampled_from([0, 0.02, 0.5, 1]))


@given(flags())
def test_bits_say_what_flags_say(given_flags: Flags) -> None:
    packed, count = bits.pack(given_flags), len(given_flags)
    assert len(packed) == (count + 7) // 8
    assert bits.unpack(packed, count).tolist() == given_flags.tolist()
    assert bits.ones(packed) == given_flags.sum()
    assert bits.positions(packed).tolist() == np.flatnonzero(given_flags).tolist()
    assert bits.from_positions(np.flatnonzero(given_flags), count).tolist() == packed.tolist()
    assert bits.unpack(bits.inverted(packed, count), count).tolist() == (~given_flags).tolist()
    assert bits.ones(bits.inverted(packed, count)) == count - given_flags.sum()
    everywhere = np.arange(count)
    assert bits.at(packed, everywhere).tolist() == given_flags.tolist()


@given(st.integers(0, 40), st.integers(0, 255))
def test_bits_behind_the_last_flag_are_set_to_0(count: int, byte: int) -> None:
    given_bits = np.full(-(-count // 8), byte, np.uint8)
    found = bits.trimmed(given_bits, count)
    assert found is not given_bits
    assert found.tolist() == np.packbits(np.unpackbits(given_bits)[:count]).tolist()


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_is_counted(byte: int) -> None:
    assert bits.ones(np.array([byte], np.uint8)) == byte.bit_count()


def test_more_flags_than_a_byte_counts_are_counted() -> None:
    assert bits.ones(np.full(100_000, 255, np.uint8)) == 800_000
