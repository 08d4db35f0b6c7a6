"""What inputs are made of: what sound, pictures and series have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ConfigError

_MOST_TEXT = 100


class RawInput(ABC):
    """How files become a model's inputs; a frozen dataclass of plain values.

    Attributes:
        classes: What the model's outputs are called, in their order; () where they have no names.
    """

    classes: tuple[str, ...]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one input, as torch takes it."""

    @property
    def span(self) -> tuple[float, float] | None:
        """The least and the largest value that an input can have; None where examples show it."""
        return None

    @abstractmethod
    def read(self, path: Path | str) -> NDArray[np.float32]:
        """Return the inputs that a file is, float32 [n, ...], n >= 1.

        Raises:
            DataError: It cannot be read, or is of another kind; names the file.
        """

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; `kind` is in it."""

    def part(self, number: int) -> str:
        """Name which part of a file an input is; "" of what has but one."""
        return ""

    def name(self, number: int) -> str:
        """Return what a class is called."""
        return self.classes[number] if self.classes else str(number)

    def check_outputs(self, count: int) -> None:
        """Check that there is a name for each of a model's outputs.

        Raises:
            ConfigError: There are more or fewer.
        """
        if self.classes and len(self.classes) != count:
            raise ConfigError(
                f"{len(self.classes)} classes have names, and the model has {count} outputs; name "
                "each, or none"
            )


def check_names(names: Sequence[str], what: str = "a class") -> None:
    """Raise a `ConfigError` where something is not called by one line of 1 to 100 characters."""
    for name in names:
        is_text = isinstance(name, str) and name.isprintable()
        if not is_text or not 0 < len(name) <= _MOST_TEXT:
            raise ConfigError(
                f"{what} is called {name!r:.60}; it must be text of 1 to {_MOST_TEXT} "
                "characters, in one line"
            )
