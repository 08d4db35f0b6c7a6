"""Sizes of memory as people write them."""

from __future__ import annotations

import pytest

from fedkit.core.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MB", 64_000_000), (" 1.5 gib ", 1_610_612_736), ("1", 1), ("0.5kB", 500), ("1KiB", 1024)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "64 M", "1e3", "nan", "inf GB", "64MB64", "٣MB", "1" * 40, "0x10"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size; give a number and a unit, such as 64MB"):
        parse_bytes(text)


def test_less_than_a_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="less than a byte"):
        parse_bytes("0.1")
