"""What README, CONTRIBUTING and docs say is tried: blocks, commands, links, files, figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.written import (
    PAGES,
    ROOT,
    anchors,
    blocks,
    broken_links,
    commands,
    fault_in_command,
    inline_commands,
    missing_files,
    page_id,
)

README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results"
DECISIONS = ROOT / "docs" / "decisions"
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def run_page(page: Path) -> dict[str, object]:
    """Run the Python blocks of a page, one after the other in one namespace; return it."""
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(read(page), "python"):
        if not block.excuse:
            # Blank lines in front, so that a traceback shows the line of the page.
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(page), "exec", dont_inherit=True), names)
    return names


# Blocks


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("page", WITH_PYTHON, ids=page_id)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(run_page(page)) > {"__name__"}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_are_known(page: Path) -> None:
    text = read(page)
    written = [
        (f"line {block.line}", command)
        for block in blocks(text, "sh", "bash")
        for command in commands(block.text)
    ]
    written += [("in a sentence", command) for command in inline_commands(text)]
    faults = [f"{place}: {fault}" for place, c in written if (fault := fault_in_command(c))]
    assert faults == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_has_a_language_that_is_tried_or_is_text(page: Path) -> None:
    text = read(page)
    fences = re.findall(r"^```(.*)$", text, re.MULTILINE)
    assert set(fences[::2]) <= {"python", "sh", "text", "toml", "mermaid"}
    assert set(fences[1::2]) <= {""}


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\ntext\n```python\nassert x == 2, 'second block'\n```\n")
    with pytest.raises(AssertionError, match="second block"):
        run_page(page)


def test_a_block_with_an_excuse_is_left_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: it needs a board -->\n\n```python\n1 / 0\n```\n")
    assert set(run_page(page)) == {"__name__"}
    page.write_text("<!-- not run: -->\n\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError):
        run_page(page)


def test_blocks_are_found_with_their_lines() -> None:
    text = "# T\n\n```sh\nmake\n```\ntext\n```python\nx = 1\n```\n```\nother\n```\n"
    assert list(blocks(text, "sh", "bash")) == [(4, "sh", "make\n", "")]
    assert list(blocks(text, "python")) == [(8, "python", "x = 1\n", "")]


def test_commands_that_do_not_exist_are_found() -> None:
    block = """
        $ cd here && fedkit fly --task digits   # a comment
        SEED=1 .venv/bin/fedkit run --no-such-option=3 | tee log
        make fly; make test FLY=1
        fedkit run \\
            --task digits --with-dense
        make -j2 2>/dev/null || make test PYTEST_FLAGS="-n auto"
        fedkit run many
        fedkit fleet
        fedkit run --help
        pip install 'fedkit[plots,wings]' && pip install anything
        .venv/bin/pytest tests/no-such-folder
        python -m fedkit.wings
    """
    faults = [fault for fault in map(fault_in_command, commands(block)) if fault]
    assert faults[0] == "fedkit has no command fly"
    assert "--no-such-option" in faults[1]
    assert faults[2:4] == ["make knows no fly", "make knows no FLY"]
    assert "many" in faults[4]
    assert faults[5:] == [
        "there is no extra wings",
        "there is no tests/no-such-folder",
        "there is no module fedkit.wings",
    ]


def test_commands_in_sentences_are_found() -> None:
    text = "Give `fedkit fly` or `make run`.\n```text\n`fedkit no block`\n```\n"
    assert list(inline_commands(text)) == [["fedkit", "fly"], ["make", "run"]]


# Links and names


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=page_id)
def test_links_and_named_files_exist(page: Path) -> None:
    assert broken_links(page) == []
    assert missing_files(read(page)) == []


def test_broken_links_and_missing_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A title, with `code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](gone.md) [c](other.md#a-title-with-code) [d](other.md#none)\n"
        "[e](https://example.org) [f](#none)\n```text\n[g](gone.md)\n```\n"
    )
    assert broken_links(page) == [
        "gone.md: no such file",
        "other.md#none: no such heading",
        "#none: no such heading",
    ]
    assert missing_files("`fedkit/gone.py` `fedkit/config.py` `edge/` `tests/gone/`") == [
        "fedkit/gone.py",
        "tests/gone",
    ]
    new = "`fedkit/new.py`:\n\n```python\n```\nFigures: `results/new.json`, not `results/x.json`."
    assert missing_files(new) == ["results/x.json"]
    assert anchors("# One & two\n") == {"one--two"}


# README


def test_readme_is_a_page() -> None:
    assert len(read(README).splitlines()) <= 150


def test_what_is_different_gives_figures_of_the_tables() -> None:
    _, _, rest = read(README).partition("## What is different\n")
    bullets = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("- ")]
    tables = "\n".join(
        line for page in RESULTS.glob("*.md") for line in read(page).splitlines() if line[:1] == "|"
    )
    assert len(bullets) >= 5
    for line in bullets:
        figures = re.findall(r"(?<![\w-])\d[\d.,]*\d(?:x| %| MB)?", line)
        assert figures, line
        for figure in figures:
            assert re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d.,]*\d)", tables), figure


def test_decisions_say_when_they_were_made() -> None:
    pages = sorted(DECISIONS.glob("*/*.md"))
    assert len(pages) > 80
    for page in pages:
        lines = read(page).splitlines()
        assert lines[0].startswith("# "), page
        assert re.fullmatch(r"Decided: 20\d\d-\d\d-\d\d\.", lines[2]), page
