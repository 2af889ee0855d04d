"""The exceptions. Each class says what to do; ``kind`` is the same as a word."""

from __future__ import annotations

from typing import ClassVar


class Error(Exception):
    """Anything that went wrong. Its text names the key or the object at fault, and the fix."""

    kind: ClassVar[str] = "fatal"


class ConfigError(Error):
    """The configuration, or the set-up of a database, is wrong. The text names the key and the fix."""

    kind = "config"


class TransientError(Error):
    """It did not happen, and the same call may succeed later."""

    kind = "transient"


class IndeterminateError(Error):
    """It may have happened. A pipeline reads what was stored, and goes on from there."""

    kind = "indeterminate"


class RejectedError(Error):
    """This row, or its transaction, can never be applied as it is."""

    kind = "rejected"


class FencedError(Error):
    """Another runner owns this pipeline now."""

    kind = "fenced"


class FatalError(Error):
    """Nothing that retrying could mend: a gap in the source, a lost slot, a defect."""

    kind = "fatal"


_BY_KIND: dict[str, type[Error]] = {
    c.kind: c
    for c in (ConfigError, TransientError, IndeterminateError, RejectedError, FencedError, FatalError)
}


def of(kind: str, report: str) -> Error:
    """The exception of an error of the library."""
    return _BY_KIND.get(kind, FatalError)(report)
