"""Every exception the project raises, in one place.

The class alone says what may be done about it:

===================  =====================================================  ==================
class                meaning                                                what the job does
===================  =====================================================  ==================
RequestError         what was asked for cannot be done as asked             exit 2, before work
StoreError           the store is in use, of another version, or damaged    exit 2
PoisonedInput        this unit's data can never be processed                unit failed, go on
JobFailed            units failed, or too much of the input was bad         exit 1
===================  =====================================================  ==================

Anything else is a bug: the unit that met it is recorded as failed, with its traceback. No error is retried within a run, since the
same call would fail again; the next run tries failed units anew. A worker that dies is another matter: see :mod:`ray_actors.pool`.
"""

from __future__ import annotations


class TopicscaleError(Exception):
    """Parent of every error raised on purpose."""


class RequestError(TopicscaleError):
    """The request is wrong: an option, a path, a column, a model, a resource."""


class ConfigError(RequestError):
    """A configuration key or value is wrong."""


class InputError(RequestError):
    """The input cannot be read, or lacks what was named."""


class ModelError(RequestError):
    """A model cannot be found or loaded, or does not fit what was asked."""


class ResourceError(RequestError):
    """The machine or cluster cannot give what was asked for."""


class MissingDependency(RequestError):
    """A package is not installed. The message holds the install line, of an extra or (``extra`` empty) of the package itself."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        wanted = f"topicscale[{extra}]" if extra else package
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: pip install '{wanted}'")


class StoreError(TopicscaleError):
    """The store cannot be used."""


class StoreLocked(StoreError):
    """Another run holds the store."""


class StoreVersionError(StoreError):
    """The store was written under another table contract."""


class PoisonedInput(TopicscaleError):
    """This unit's data cannot be processed, however often it is tried."""


class JobFailed(TopicscaleError):
    """The job ended with failed units, or with more bad rows than its limit allows."""
