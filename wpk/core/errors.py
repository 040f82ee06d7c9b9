"""Every error a user can see. One class per way a run can end; each carries its exit code."""


class WpkError(Exception):
    """Base of all errors wpk reports. The message names the user's file or node, what was expected and what was found."""

    exit_code = 1


class UsageError(WpkError):
    """The command line or the API was called wrongly."""

    exit_code = 2


class ModelError(WpkError):
    """The ONNX model cannot be read or is not valid."""

    exit_code = 3


class FeedError(WpkError):
    """A feed has a wrong name, dtype or shape."""

    exit_code = 4


class ArtifactError(WpkError):
    """A .wpk file is damaged, of another version, or made for another machine."""

    exit_code = 5


class LogError(WpkError):
    """A tuning log cannot be read, or strict replay misses an entry."""

    exit_code = 6


class ToolchainError(WpkError):
    """No C compiler, or it does not work."""

    exit_code = 7


class StorageError(WpkError):
    """A file or cache cannot be written."""

    exit_code = 8


class FleetError(WpkError):
    """A cluster cannot be reached, or none of its workers can do the work."""

    exit_code = 9


class DeviceError(WpkError):
    """A GPU, its driver or a library for it is missing, or a kernel faulted on it."""

    exit_code = 10


class DeviceMemoryError(DeviceError):
    """The GPU has not the memory that was asked for."""

    exit_code = 11


class InternalError(WpkError):
    """wpk broke one of its own rules; always a bug."""

    exit_code = 70


class InvalidConfig(Exception):
    """A config is outside what a family can build. Inside the search this is a value (kind `invalid`), never an end."""
