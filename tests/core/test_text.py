from __future__ import annotations

import string
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from fedkit.core.text import source_text, terminal_text

PLAIN = set(string.ascii_letters + string.digits + "_. :,()[]-")
ANY = st.text(st.characters(), max_size=300)


@settings(deadline=None)
@given(ANY)
def test_source_text_holds_nothing_that_ends_a_comment_or_a_line(text: str) -> None:
    out = source_text(text)
    assert set(out) <= PLAIN
    assert len(out) == min(len(text), 200)
    assert source_text(out) == out


@settings(deadline=None)
@given(ANY)
def test_terminal_text_holds_no_control_character(text: str) -> None:
    out = terminal_text(text)
    assert not [c for c in out if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert terminal_text(out) == out


def test_what_is_printable_stays() -> None:
    assert terminal_text("Gerät 1: [ä] 漢字") == "Gerät 1: [ä] 漢字"
    assert source_text("layer1.0.conv_a: (3, 3)") == "layer1.0.conv_a: (3, 3)"
