"""Reads what is written in the pages: their blocks, commands, links and names of files."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import typer.main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


# Blocks


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        line: Number of its first line.
        language: What stands behind the fence.
        text: What is in it.
        excuse: Why it is not run, from a comment above it; "" where it is.
    """

    line: int
    language: str
    text: str
    excuse: str


_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<excuse>.+?) -->\n+)?"
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks(text: str, *languages: str) -> Iterator[Block]:
    """Yield the blocks of a page in some languages."""
    for match in _FENCE.finditer(text):
        if match["language"] in languages:
            line = text.count("\n", 0, match.start("text")) + 1
            yield Block(line, match["language"], match["text"], match["excuse"] or "")


def commands(block: str) -> Iterator[list[str]]:
    """Yield the commands of a shell block as words, without prompts, variables and comments."""
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"\d?[<>]+&?\s*\S+", "", line.strip().removeprefix("$ "))  # redirections
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in lexer:
            if set(word) <= set("();<>|&"):
                yield from [command] if command else []
                command = []
            elif command or not re.match(r"\w+=", word):
                command.append(word)
        yield from [command] if command else []


def inline_commands(text: str) -> Iterator[list[str]]:
    """Yield the commands that stand in a sentence, between backquotes."""
    without_blocks = _FENCE.sub("", text)
    for span in re.findall(r"`((?:fedkit|make|pip) [^`\n]+)`", without_blocks):
        yield from commands(span.replace("\\|", "|"))


# Commands


@functools.cache
def make_words() -> tuple[set[str], set[str]]:
    """Return the targets and the variables of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    return targets, set(re.findall(r"\$\(([A-Z_]+)\)", text))


@functools.cache
def extras() -> set[str]:
    """Return the extras that pip can install."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return set(config["project"]["optional-dependencies"])


@functools.cache
def command_line() -> click.Command:
    from fedkit.cli.app import app

    return typer.main.get_command(app)


def fault_in_command(words: list[str]) -> str:
    """Say what is wrong with a command of ours, or nothing; other programs are free."""
    program, given = Path(words[0]).name, words[1:]
    if program.startswith("python") and given[:2] == ["-m", "venv"]:
        return ""
    known = {
        "make": fault_in_make,
        "fedkit": fault_in_fedkit,
        "pip": fault_in_pip,
        "pytest": fault_in_pytest,
        "python": fault_in_python,
    }
    return known[program](given) if program in known else ""


def fault_in_make(words: list[str]) -> str:
    targets, variables = make_words()
    for word in words:
        name, assigned, _ = word.partition("=")
        known = variables if assigned else targets
        if not word.startswith("-") and name not in known:
            return f"make knows no {name}"
    return ""


def fault_in_fedkit(words: list[str]) -> str:
    """Let the real command line parse the words; nothing is run."""
    command, words = command_line(), list(words)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        if name not in command.commands:
            return f"fedkit has no command {name}"
        command = command.commands[name]
    if isinstance(command, click.Group):
        return "" if words in ([], ["--help"]) else f"fedkit has no option {words[0]}"
    try:
        command.make_context(command.name, words)
    except click.MissingParameter as error:
        # A sentence may name a command and nothing else.
        return f"fedkit {command.name}: {error.format_message()}" if words else ""
    except click.ClickException as error:
        return f"fedkit {command.name}: {error.format_message()}"
    except click.exceptions.Exit:  # --help
        return ""
    return ""


def fault_in_pip(words: list[str]) -> str:
    for word in words:
        found = re.fullmatch(r"(?:fedkit|\.)\[([\w,-]+)\]", word)
        if found and (missing := set(found[1].split(",")) - extras()):
            return f"there is no extra {sorted(missing)[0]}"
    return ""


def fault_in_pytest(words: list[str]) -> str:
    missing = [word for word in words if "/" in word and not (ROOT / word).exists()]
    return f"there is no {missing[0]}" if missing else ""


def fault_in_python(words: list[str]) -> str:
    if words[:1] == ["-m"] and importlib.util.find_spec(words[1]) is None:
        return f"there is no module {words[1]}"
    if words and words[0].endswith(".py") and not (ROOT / words[0]).exists():
        return f"there is no {words[0]}"
    return ""


# Links and names of files


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


def broken_links(page: Path) -> list[str]:
    """List the relative links of a page that lead nowhere."""
    text = page.read_text(encoding="utf-8")
    faults = []
    for link in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_file():
            faults.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            faults.append(f"{link}: no such heading")
    return faults


_TOP = ("fedkit", "edge", "sim", "tests", "examples", "docs", "results", ".ci")
_FILE = re.compile(rf"`((?:{'|'.join(map(re.escape, _TOP))})/[\w./-]*\w)/?`")
_MADE = re.compile(r"^`([\w./-]+)`:\n\n```", re.MULTILINE)


def missing_files(text: str) -> list[str]:
    """List the files and folders that a text names and that are not there.

    NAME stands for any name. A page may tell its reader to write a file: that has a line of its own
    above a block, and files of its name may be told of.
    """
    made = {Path(name).stem for name in _MADE.findall(text)}
    named = [name for name in _FILE.findall(text) if "NAME" not in name]
    return [name for name in named if not (ROOT / name).exists() and Path(name).stem not in made]
