"""What every loss is: torch's function, and the same in numpy with its gradient."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import TaskError
from fedkit.core.reals import Reals
from fedkit.tasks.targets import describe

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Self

    from torch import Tensor

_PART = 1 << 14
"""Numbers that are computed with at once."""


class Loss(ABC):
    """One loss. Each is a frozen dataclass whose fields are what a plan file says of it.

    Attributes:
        kind: A field of type `Literal` with its name, torch's where torch has it.
        in_torch: Name of torch's module that is this loss, if there is one.
        classifies: Whether targets are indices of the model's outputs.
    """

    if TYPE_CHECKING:

        @property
        def kind(self) -> str:
            """Its name."""

    in_torch: ClassVar[str] = ""
    classifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            if field.type == "float":
                object.__setattr__(self, field.name, number(getattr(self, field.name)))
        for problem in self._problems():
            raise TaskError(f"loss {self.kind}: {problem}")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar, by torch.

        Args:
            outputs: float [n, ...], n >= 1.
            targets: As `targets_problem` asks for them.

        Raises:
            TaskError: The batch is empty.
        """
        self._check_some(len(outputs))
        return self._by_torch(outputs, targets)

    def gradient(self, outputs: Reals, targets: NDArray[Any]) -> tuple[float, Reals]:
        """Return the loss of a batch, and its gradient by the outputs.

        Args:
            outputs: float64 [n, ...], n >= 1. Where they are not finite, the loss is not either.
            targets: For which `targets_problem` says "".

        Raises:
            TaskError: The batch is empty.
        """
        self._check_some(len(outputs))
        return self._by_numpy(outputs, targets)

    @abstractmethod
    def _by_torch(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch that is not empty."""

    @abstractmethod
    def _by_numpy(self, outputs: Reals, targets: NDArray[Any]) -> tuple[float, Reals]:
        """Return loss and gradient of a batch that is not empty."""

    def _check_some(self, examples: int) -> None:
        if examples == 0:
            raise TaskError(f"loss {self.kind} of an empty batch has no value; give it examples")

    def outputs_problem(self, shape: tuple[int, ...]) -> str:
        """Say why outputs of a shape, without the batch, do not fit this loss; "" if they do."""
        return ""

    @abstractmethod
    def targets_problem(self, shape: tuple[int, ...], targets: NDArray[Any]) -> str:
        """Say why targets do not fit outputs of a shape, without the batch; "" if they do.

        Args:
            shape: For which `outputs_problem` says "".
            targets: Any array [n, ...].
        """

    @abstractmethod
    def outputs_for(self, targets: NDArray[Any]) -> tuple[int, ...]:
        """Return the shape of an example's outputs that targets ask for; () if they do not fit."""

    def share(self, targets: NDArray[Any]) -> float:
        """Return what the loss of a batch counts in a mean over batches."""
        return len(targets)

    def _problems(self) -> Iterator[str]:
        """Yield what is wrong with its values."""
        return iter(())

    # As torch has it

    @classmethod
    def of_torch(cls, loss: object, nn: ModuleType) -> Self | None:
        """Return the loss that a function or module of torch is; None if it is not this one.

        Args:
            loss: Such as `torch.nn.functional.mse_loss`, a `functools.partial` of it, or
                `torch.nn.MSELoss()`.
            nn: The module `torch.nn`.
        """
        if not cls.in_torch:
            return None
        name: str = cls.kind  # type: ignore[assignment]  # a field with a default
        function, module = getattr(nn.functional, name), getattr(nn, cls.in_torch)
        if loss is function:
            return cls.with_values({})
        if isinstance(loss, partial) and loss.func is function and not loss.args:
            return cls.with_values(loss.keywords)
        if type(loss) is module:
            names = (*cls._names(), "reduction", *vars(loss)["_buffers"])
            return cls.with_values({name: getattr(loss, name) for name in names})
        return None

    @classmethod
    def with_values(cls, values: dict[str, Any]) -> Self | None:
        """Return the loss with values as torch names them; None if there are others than ours."""
        own = {name: value for name, value in values.items() if name in cls._names()}
        others = [value for name, value in values.items() if name not in own and value is not None]
        return cls(**own) if all(isinstance(v, str) and v == "mean" for v in others) else None

    @classmethod
    def _names(cls) -> list[str]:
        return [field.name for field in fields(cls) if field.name != "kind"]  # type: ignore[arg-type]


class PerElement(Loss):
    """A base of losses that compare outputs with targets of the same shape, one by one."""

    @abstractmethod
    def terms(self, outputs: Reals, targets: Reals) -> tuple[Reals, Reals]:
        """Return the loss of each element, and its slope by the output."""

    def _by_numpy(self, outputs: Reals, targets: NDArray[Any]) -> tuple[float, Reals]:
        total, slopes = 0.0, np.empty_like(outputs)
        with np.errstate(over="ignore", invalid="ignore"):
            for part in parts(len(outputs), math.prod(outputs.shape[1:])):
                values, slopes[part] = self.terms(outputs[part], targets[part].astype(np.float64))
                total += float(values.sum())
            return total / outputs.size, slopes / outputs.size

    def targets_problem(self, shape: tuple[int, ...], targets: NDArray[Any]) -> str:
        """See `Loss.targets_problem`."""
        if targets.shape[1:] == shape and targets.dtype.kind in "fiu":
            return ""
        found, wanted = targets.shape, ("n", *shape)
        hint = ""
        if math.prod(found[1:]) == math.prod(shape):
            hint = f": reshape them with targets.reshape({', '.join(map(str, (-1, *shape)))})"
        return (
            f"targets are {describe(targets)}, and loss {self.kind} compares each output with a "
            f"number, so that they must be [{', '.join(map(str, wanted))}], as the outputs{hint}"
        )

    def outputs_for(self, targets: NDArray[Any]) -> tuple[int, ...]:
        """See `Loss.outputs_for`."""
        return targets.shape[1:]


def parts(rows: int, width: int) -> Iterator[slice]:
    """Yield the rows of a table in parts that stay in a processor's cache."""
    step = max(1, _PART // width)
    for start in range(0, rows, step):
        yield slice(start, start + step)


def like(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return targets, which may be whole numbers, in the type of the outputs."""
    return targets.to(outputs.dtype)


def not_positive(name: str, value: float) -> Iterator[str]:
    """Yield what is wrong with a setting that must be finite and greater than 0."""
    if not 0 < value < math.inf:
        yield f"{name} is {value!r}; it must be finite and greater than 0"


def number(given: Any) -> float:
    """Return a number as a float.

    Raises:
        TaskError: It is none.
    """
    try:
        return float(given)
    except (TypeError, ValueError, OverflowError) as error:
        raise TaskError(f"{given!r:.60} is not a number") from error


def numbers(given: Any) -> tuple[float, ...]:
    """Return a number for each class as a tuple, whatever sequence, array or tensor has them.

    Raises:
        TaskError: These are not numbers in one row.
    """
    try:
        array = np.asarray(given, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TaskError(f"{given!r:.60} are not numbers, one for each class") from error
    if array.ndim != 1:
        raise TaskError(
            f"{given!r:.60} are numbers of shape {array.shape}; give one for each class"
        )
    return tuple(array.tolist())
