"""What the library logs goes to the logger ``anabranch`` and its children."""

from __future__ import annotations

import logging

logger = logging.getLogger("anabranch")
logger.addHandler(logging.NullHandler())


def raised(doing: str, error: BaseException) -> None:
    """An exception of a connector that nothing mends: its traceback."""
    logger.getChild("python").error("%s raised an exception", doing, exc_info=error)
