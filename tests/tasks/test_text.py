"""Texts as tokens, and the task that tells the next character of fortunes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkit.core.errors import DataError
from fedkit.tasks import fortunes, text


@given(st.text(alphabet=text.CHARACTERS))
def test_tokens_are_the_text_again(given_text: str) -> None:
    tokens = text.tokens_of(given_text)
    assert tokens.dtype == np.int64 and text.text_of(tokens) == given_text


@given(st.text())
def test_every_text_has_tokens_of_the_table(given_text: str) -> None:
    tokens = text.tokens_of(given_text)
    assert ((tokens >= 0) & (tokens < text.TOKENS)).all()
    plain = given_text.replace("\r\n", "\n").replace("\t", " ")
    assert text.text_of(tokens) == "".join(c if c in text.CHARACTERS else "?" for c in plain)


@given(st.lists(st.text("ab\n", max_size=40), min_size=1, max_size=4), st.integers(1, 5))
def test_windows_are_what_a_loop_cuts(texts: list[str], length: int) -> None:
    named = {str(number): each for number, each in enumerate(texts)}
    expected = []
    for name, each in named.items():
        tokens = text.tokens_of(each).tolist()
        for first in range(0, len(tokens) - length, length):
            part = tokens[first : first + length + 1]
            expected.append((part[:-1], part[1:], name))
    if not expected:
        with pytest.raises(DataError, match="have no window of"):
            text.windows(named, length, 0.0, test=False)
        return
    found = text.windows(named, length, 0.0, test=False)
    rows = zip(found.inputs.tolist(), found.targets.tolist(), found.owners.tolist(), strict=True)  # type: ignore[union-attr]
    assert list(rows) == expected


def test_the_end_of_each_text_is_for_the_test() -> None:
    texts = {"a": "x" * 90 + "y" * 10, "b": "x" * 45 + "y" * 5}
    train, test = (text.windows(texts, 3, 0.1, test=which) for which in (False, True))
    x, y = text.tokens_of("xy")
    assert (train.inputs == x).all() and (train.targets == x).all() and (test.inputs == y).all()


@pytest.mark.parametrize(("length", "share"), [(0, 0.1), (4, 1.0), (4, -0.1)])
def test_a_length_or_share_that_cannot_be_is_refused(length: int, share: float) -> None:
    with pytest.raises(DataError, match="a window has at least 1 token, and a share is from 0"):
        text.windows({"a": "abc" * 9}, length, share, test=False)


@pytest.fixture
def topics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDKIT_DATA", str(tmp_path))
    fortunes._texts.cache_clear()
    folder = tmp_path / "fortunes"
    folder.mkdir()
    yield folder  # type: ignore[misc]
    fortunes._texts.cache_clear()


def test_a_folder_of_topics(topics: Path) -> None:
    (topics / "art").write_text("Ceci n'est pas une pipe.\n%\n" * 40, encoding="utf-8")
    (topics / "law").write_text("The law is an ass.\n%\n" * 90, encoding="utf-8")
    (topics / "law.dat").write_bytes(b"\xff\xfe index")
    train, test = fortunes.train_data(), fortunes.test_data()
    assert set(train.owners.tolist()) == {"art", "law"}  # type: ignore[union-attr]
    assert train.inputs.shape[1:] == test.targets.shape[1:] == (fortunes.LENGTH,)
    assert len(train) > 5 * len(test) > 0


def test_no_text_and_what_is_none(topics: Path) -> None:
    with pytest.raises(DataError, match="holds no text files; there must be one for each topic"):
        fortunes.train_data()
    (topics / "art").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="art cannot be read as text in UTF-8"):
        fortunes.train_data()


def test_a_task_without_its_package_says_where_to_put_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKIT_DATA", str(tmp_path))
    monkeypatch.setattr(fortunes, "DEBIAN_FOLDER", tmp_path / "none")
    fortunes._texts.cache_clear()
    with pytest.raises(DataError, match="or install the Debian package fortunes"):
        fortunes.test_data()
