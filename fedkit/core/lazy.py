"""A package that offers names of its modules, each imported when it is asked for.

As `fedkit.core.moved`, this imports nothing before it is needed.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def offer(
    package: str, where: "Mapping[str, str]"
) -> "tuple[Callable[[str], Any], Callable[[], list[str]]]":
    """Return `__getattr__` and `__dir__` of a package.

    Args:
        package: Its name.
        where: Name that it offers -> the module that has it, under that name.
    """
    import sys

    def find(name: str) -> "Any":
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name)
        from importlib import import_module

        value = getattr(import_module(where[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *where})

    return find, listed
