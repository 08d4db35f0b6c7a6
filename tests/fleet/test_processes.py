"""What is handed to Flower's command line arrives as it was."""

from __future__ import annotations

from flwr.common.config import parse_config_args
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedkit.flower.processes import Value, toml_pairs

TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text("\"'\\= \n\x7f\0#%.toml")


@given(TEXT, st.integers(-(2**62), 2**62), st.booleans())
@example('a" injected=1 x="', 0, False)
@example("\\", 0, False)
@example("\U0001f600", 0, True)
@settings(deadline=None)
def test_every_value_arrives_and_no_key_comes_along(text: str, number: int, flag: bool) -> None:
    values: dict[str, Value] = {"text": text, "number": number, "flag": flag, "last": text}
    assert parse_config_args([toml_pairs(values)]) == values
