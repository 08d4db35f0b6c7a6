"""Errors a user can act on.

Every message says what is wrong, the value that was found, the rule it breaks and the next step.
The CLI prints the message alone and exits with the error's code, 2 unless a signal ended it; a
traceback means a fault of ours.
"""


class FedkitError(Exception):
    """Base of all errors that the user, not the developer, is meant to read.

    Attributes:
        exit_code: What the command ends with.
    """

    exit_code = 2


class ConfigError(FedkitError):
    """A key or value of the run configuration breaks its rule."""


class TaskError(FedkitError):
    """A task cannot be found or does not keep the contract of `fedkit.tasks.task.Task`."""


class DataError(FedkitError):
    """A data set is missing, or a device's share of it cannot be trained on."""


class WireError(FedkitError):
    """A message is truncated, altered or does not fit the model it claims to be for."""


class FleetError(FedkitError):
    """A device failed, did not answer, or the Flower processes could not be started."""


class StoppedError(FleetError):
    """A signal ended the command; it exits as shells say it, with 128 and the signal's number.

    Args:
        message: What was stopped, what is kept and how to go on.
        number: Of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class CheckpointError(FedkitError):
    """A run folder or checkpoint is missing, incomplete or already there."""


class ExportError(FedkitError):
    """A model cannot be lowered to an integer graph, or an artifact does not keep its promise."""


class BenchError(FedkitError):
    """A benchmark's tools are missing, or what it measures fails or gives a wrong result."""


class EngineError(FedkitError):
    """The engine cannot compute what it is given, or is not there."""


class PlanError(FedkitError):
    """A model cannot be captured as a plan, or a plan file is missing, altered or wrong."""


class QuantizationError(FedkitError):
    """Numbers cannot be quantised, or multiplied as integers, in the format asked for."""
