"""Words: the field's terms, plain English, and one name for one thing.

`docs/concepts/glossary.md` is the list for readers; the one below must be the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("edge", "fedkit", "sim")
FOLDERS = (*PRODUCT, "docs", "examples", "tests")
SUFFIXES = (".c", ".cc", ".h", ".md", ".py", ".sh", ".toml", ".v")
GLOSSARY = ROOT / "docs" / "concepts" / "glossary.md"

RETIRED = {
    "complaint": "diagnostic",
    "door": "reader or validation",
    "rival": "baseline",
    "seam": "interface",
    "settle": "requantise or resolve",
    "twin": "reference or counterpart",
    "whoever": "anyone who",
}
"""Word that does not come back -> the one that says it, in every form of the word."""

FORMS = {"complaint": ("complain", "complains"), "settle": ("settles", "settled", "settling")}
"""Forms beside the word itself and its plural."""

ALLOWED = {
    "fedkit/core/moved.py": "lists paths and names of 0.1",
    "tests/test_words.py": "lists the words",
    "docs/concepts/glossary.md": "lists the words",
}
"""Files in which retired words stand -> why."""

NOT_ENGLISH = (
    r"(?<![Tt]here )\bis no (?:valid|regular|plain|single|such|JSON|ONNX|IPv\d|TOML)\b",
    r"(?<![Tt]here )\bis no (?:number|parameter|weight)\b",
    r"\bare no (?:classes|cycles|floats|numbers|weights)\b",
    r"\b(?:for|so that|of|by|to) who (?!\w+ and)",
)
"""Phrases that are not idiomatic: "is not a valid X", "for those who" say it."""

SAME_CLASSES = {
    "GuardedKernels": "kernels with guarded memory, of each engine's sanitiser run",
    "Net": "the model of a small example",
    "Match": "what a pass found; each pass is one file with its own match",
    "Sources": "the text of a model in the language of a target, one per target",
}
"""Names of classes that occur more than once -> the one thing that all of them are."""

SAME_MODULES = {
    "attention": "attention by heads: in the model graph, and as it trains",
    "channel_norm": "the op: in plans, and how engines compute it",
    "product": "products of two activations: in plans, and how engines compute them",
    "softmax": "softmax over channels: in the model graph, in integers, and as it trains",
    "spread": "values of all examples: in the model graph, and as they train",
    "norms": "normalisation: its ops in the model graph, and what its statistics are",
    "pool": "the pooling ops: of the model graph, and as they train",
    "conv": "the op whose weights are pruned: in plans, and how engines compute it",
    "client_app": "Flower's name for the entry point of a client",
    "depth_to_space": "channels as places: in the model graph, in integers, and as it trains",
    "embedding": "rows of a table: in the model graph, and as they train",
    "emitter": "writes the artifact, one per target",
    "engine": "the engine of its folder",
    "function": "functions of one value: in plans, and how engines compute them",
    "layer_norm": "the op: in plans, how engines compute it, and the arithmetic of its integers",
    "pair": "products, differences and gates: in plans, and how engines compute them",
    "program": "what an engine runs, one per engine",
    "registry": "finds all of a kind where they lie: benchmarks, methods, targets",
    "row": "what a target declares, one per target",
    "runner": "runs an artifact, one per target",
    "scenario": "the parts of a run: defined by the server, made for simulated devices by sim",
    "server_app": "Flower's name for the entry point of a server",
    "take": "values from other places: in the model graph, and as it trains",
    "slim": "removal of empty channels, from a torch model and from a graph",
}
"""Names of modules that occur more than once -> the one thing that all of them are."""

NAMED_AFTER_OTHERS = ("edge/bench/", "fedkit/bench/", "fedkit/cli/")
"""Folders whose modules are called as what they measure, and as the command that they are."""


# Reading


def texts() -> Iterator[tuple[str, str]]:
    """Yield (path, content) of every text of the repository but results."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    for path in sorted([*paths, *ROOT.iterdir()]):
        if path.name == "Makefile" or path.suffix in SUFFIXES:
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def words(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, word), lower case; names are taken apart at underscores and capitals."""
    for number, line in enumerate(text.splitlines(), 1):
        for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", line):
            yield number, word.lower()


def forms(word: str) -> set[str]:
    return {word, f"{word}s", *FORMS.get(word, ())}


def retired_in(text: str) -> list[str]:
    found = {form: word for word in RETIRED for form in forms(word)}
    return [
        f"line {line}: {word!r}; say {RETIRED[found[word]]}"
        for line, word in words(text)
        if word in found
    ]


def sources(*folders: str) -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def is_test(path: str) -> bool:
    return Path(path).name.startswith("test_")


CLASS = re.compile(r"^ *class ([^\W_]\w*)[(:\[]", re.MULTILINE)
"""One that starts with `_` is seen in its own file alone."""


def public_classes(contents: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of classes."""
    for path, content in contents.items():
        for name in CLASS.findall(content):
            yield name, path


def collisions(contents: dict[str, str]) -> dict[str, list[str]]:
    """Return name -> files of classes that share it.

    A class of a test file is seen by that file alone: others may repeat it, but the product's
    names are taken.
    """
    places = defaultdict(list)
    for name, path in public_classes(contents):
        places[name].append(path)
    shared = {}
    for name, paths in places.items():
        common = [path for path in paths if not is_test(path)]
        of_product = any(path.startswith(PRODUCT) for path in common)
        if len(paths) > 1 and (len(common) > 1 or of_product):
            shared[name] = paths
    return shared


def modules() -> dict[str, list[str]]:
    """Return name -> files of the product's modules that share it.

    A family of ops has one file on each side, which count as one.
    """
    places = defaultdict(list)
    for path in sources(*PRODUCT):
        if path.startswith("edge/ops/") and (ROOT / "fedkit/graph" / path[len("edge/") :]).exists():
            continue
        if not path.startswith(NAMED_AFTER_OTHERS) and not Path(path).stem.startswith("__"):
            places[Path(path).stem].append(path)
    return {name: paths for name, paths in places.items() if len(paths) > 1}


# Words


def test_retired_words_do_not_come_back() -> None:
    found = [
        f"{path}, {fault}"
        for path, text in texts()
        if path not in ALLOWED
        for fault in retired_in(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("BASELINES = 1", 0),
        ("RIVALS = 1  # rivals", 2),
        ("def own_rival(): ...", 1),
        ("class IntSettling: ...", 1),
        ("arrival, indoors, seamless, unsettled", 0),
    ],
)
def test_a_retired_word_is_found_in_any_form_and_no_other(text: str, count: int) -> None:
    assert len(retired_in(text)) == count


def test_sentences_are_english() -> None:
    found = [
        f"{path}: {match.group()}"
        for path, text in texts()
        if path not in ALLOWED
        for pattern in NOT_ENGLISH
        for match in re.finditer(pattern, text)
    ]
    assert found == []


@pytest.mark.parametrize("text", ["grid.toml is no valid TOML", "for who follows the run"])
def test_a_sentence_that_is_not_english_is_found(text: str) -> None:
    assert any(re.search(pattern, text) for pattern in NOT_ENGLISH)


def test_every_allowance_is_needed() -> None:
    known = dict(texts())
    for path in ALLOWED:
        assert retired_in(known[path]), path


# The glossary


def rows(title: str) -> list[list[str]]:
    """Read the table under a heading of the glossary, without its head."""
    text = GLOSSARY.read_text(encoding="utf-8")
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_glossary_lists_the_retired_words() -> None:
    assert dict(rows("Retired words")) == RETIRED


def test_the_glossary_is_sorted_and_its_places_exist() -> None:
    table = rows("Words")
    assert [row[0] for row in table] == sorted((row[0] for row in table), key=str.lower)
    for word, meaning, places in table:
        assert meaning.endswith("."), word
        found = re.findall(r"`([^`]+)`", places)
        assert found, word
        for place in found:
            assert (ROOT / place).exists(), f"{word}: {place}"


# Names


def test_no_two_classes_of_different_meaning_share_a_name() -> None:
    found = collisions(sources(*PRODUCT, "examples", "tests"))
    assert {name: paths for name, paths in found.items() if name not in SAME_CLASSES} == {}
    assert set(SAME_CLASSES) <= set(found), "allowances that nothing needs"


def test_a_planted_collision_of_classes_is_found() -> None:
    def planted(*paths: str) -> dict[str, list[str]]:
        return collisions(dict.fromkeys(paths, "class Pool: ..."))

    assert planted("fedkit/a.py", "edge/b.py") == {"Pool": ["fedkit/a.py", "edge/b.py"]}
    assert planted("fedkit/a.py", "tests/test_b.py") != {}
    assert planted("tests/a.py", "tests/b.py") != {}
    assert planted("tests/test_a.py", "tests/test_b.py") == {}
    assert planted("fedkit/a.py") == {}


def test_no_two_modules_of_different_meaning_share_a_name() -> None:
    found = modules()
    assert {name: paths for name, paths in found.items() if name not in SAME_MODULES} == {}
    assert set(SAME_MODULES) <= set(found), "allowances that nothing needs"
