"""The orders that a pipeline can keep."""

from __future__ import annotations

import datetime as _dt
from dataclasses import dataclass
from typing import Any, Dict, Optional, Union


@dataclass(frozen=True)
class ByTransaction:
    """Source commit order, whole transactions: no reader of a transactional target sees part of one."""

    def _keys(self) -> Dict[str, Any]:
        return {"order": "transaction"}


@dataclass(frozen=True)
class ByKey:
    """Per primary key, on several lanes: transactions are not kept together."""

    lanes: Optional[int] = None

    def _keys(self) -> Dict[str, Any]:
        return {"order": "key", "lanes": self.lanes}


@dataclass(frozen=True)
class ByWindow:
    """Per shard, sorted by commit time in fixed windows; their length in seconds, or as a ``timedelta``."""

    length: "Union[float, _dt.timedelta]" = 10.0
    lanes: Optional[int] = None

    def _keys(self) -> Dict[str, Any]:
        return {"order": "window", "window_seconds": self.length, "lanes": self.lanes}


@dataclass(frozen=True)
class Arrival:
    """As the source gives changes, cut wherever a unit is full."""

    def _keys(self) -> Dict[str, Any]:
        return {"order": "arrival"}


Order = Union[str, ByTransaction, ByKey, ByWindow, Arrival]
