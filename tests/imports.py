"""What the modules of a tree import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fedkit", "edge", "sim")
OURS = (*PACKAGES, "examples", "tests")
Imports = dict[str, set[str]]
"""Module -> what it imports, as dotted names."""


def read_imports(root: Path) -> Imports:
    """Read the imports of all our modules under `root`."""
    files = {
        module_name(path.relative_to(root)): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }
    known = set(files)
    return {module: set(imported(module, path, known)) for module, path in files.items()}


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(module: str, path: Path, known: set[str]) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        node
        for block in statements(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for statement in block.body
        for node in (statement, *statements(statement))
    }
    for node in statements(tree):
        for name in names(node, package, known):
            if node not in for_types or ours(name):
                yield name


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """Yield all statements below a node, and not what they compute with: most of a tree."""
    for _, value in ast.iter_fields(tree):
        for node in value if isinstance(value, list) else ():
            if isinstance(node, ast.stmt):
                yield node
            if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
                yield from statements(node)


def names(node: ast.AST, package: str, known: set[str]) -> Iterator[str]:
    """Yield what one statement imports; nothing if it is not an import."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = absolute(node, package)
        for alias in node.names:
            submodule = f"{base}.{alias.name}"
            yield submodule if submodule in known else base


def absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the module an import starts from, with the dots of a relative import resolved."""
    if node.level == 0:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def inside(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def ours(module: str) -> bool:
    return inside(module, *OURS)
