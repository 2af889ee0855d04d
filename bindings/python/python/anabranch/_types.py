"""Plain types that cross the border, and the values of rows."""

from __future__ import annotations

import datetime as _dt
import decimal
import json
import uuid
from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Sequence, Tuple, Union

from ._anabranch import Position

_EPOCH = _dt.datetime(1970, 1, 1, tzinfo=_dt.timezone.utc)
_MICRO = _dt.timedelta(microseconds=1)


class _Unchanged:
    """A column that the source did not send: what is in the target stays."""

    _one: Optional["_Unchanged"] = None

    def __new__(cls) -> "_Unchanged":
        if cls._one is None:
            cls._one = super().__new__(cls)
        return cls._one

    def __repr__(self) -> str:
        return "UNCHANGED"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "UNCHANGED"


UNCHANGED = _Unchanged()


class Json(str):
    """JSON text, exactly as the source has it. ``loads`` reads it."""

    __slots__ = ()

    def loads(self, **options: Any) -> Any:
        """What it stands for, as :func:`json.loads` reads it."""
        return json.loads(self, **options)

    def __repr__(self) -> str:
        return f"Json({str.__repr__(self)})"


@dataclass(frozen=True)
class Partition:
    """A piece in which a source gives its changes. It is read once its parents are done."""

    id: str
    parents: Sequence[str] = ()
    start: Optional[Position] = None


@dataclass(frozen=True)
class StartFrom:
    """Where a reader starts: after ``position``, or where the partition starts if that is ``None``, or has an
    empty token. ``snapshots`` has the points at which tables were copied: changes of them at or before it must
    not be given again."""

    position: Optional[Position] = None
    snapshots: Mapping[str, Position] = field(default_factory=dict)


@dataclass(frozen=True)
class Closed:
    """The partition ended; ``children`` go on where it did."""

    children: Sequence[Partition] = ()


@dataclass(frozen=True)
class Stopped:
    """The reading ended, but the partition did not: it is opened again from the last position."""


@dataclass(frozen=True)
class Chunk:
    """A part of a table to copy. ``token`` is what the connector needs to read it."""

    table: Any
    token: str
    rows: Optional[int] = None


@dataclass(frozen=True)
class Lane:
    """One of the writers of a sink. A sink with transactions checks ``epoch`` in each of them."""

    pipeline: str
    index: int
    count: int
    epoch: int
    purpose: str


@dataclass(frozen=True)
class Claim:
    """A claim to a pipeline: writers of an older epoch must fail with :class:`FencedError` from now on."""

    pipeline: str
    epoch: int
    lanes: int
    identity: Mapping[str, str]

    def lane(self, index: int, before: Optional[str] = None) -> str:
        """The progress of a lane as it is to be stored with this claim, given what was stored before."""
        stored = json.loads(before) if before else {"partitions": {}, "counters": _NO_COUNTERS, "identity": {}}
        # A run that lost its checkpoint claims without an identity, to learn it from what is stored.
        identity = dict(self.identity) or stored["identity"]
        stored.update(lane=index, lanes=self.lanes, identity=identity)
        return json.dumps(stored)


_NO_COUNTERS = {"changes": 0, "transactions": 0, "snapshot_rows": 0, "dead_letters": 0}


@dataclass(frozen=True)
class Written:
    """What became of a unit: ``durable`` if it survives a crash of the target from here on, else it is durable after
    the next ``flush``. ``rejected`` are places of changes that were refused, each with the reason: only of
    sinks without transactions. ``stale`` counts changes that did nothing, the target's row being newer."""

    durable: bool
    rejected: Sequence[Tuple[int, Union[str, BaseException]]] = ()
    stale: int = 0


DURABLE = Written(durable=True)
ACCEPTED = Written(durable=False)


@dataclass(frozen=True)
class LeftOut:
    """A change that a transform leaves out: it is counted, and kept as a dead letter of this class: ``filtered`` and
    ``skip`` on purpose, ``severe`` if a person must look at it."""

    reason: str
    kind: str = "filtered"

    @property
    def _left_out(self) -> Tuple[str, str]:
        return (self.kind, self.reason)


@dataclass(frozen=True)
class Checkpoint:
    """What a pipeline remembers: of interest to a source are ``identity`` and ``positions`` (by partition)."""

    identity: Mapping[str, str]
    positions: Mapping[str, Position]
    text: str = field(repr=False)

    @classmethod
    def of(cls, text: str) -> "Checkpoint":
        """From its stored form."""
        stored = json.loads(text)
        positions = {
            name: Position(bytes.fromhex(p["position"]["rank"]), bytes.fromhex(p["position"]["token"]))
            for name, p in stored["partitions"].items()
            if p.get("position")
        }
        return cls(stored["identity"], positions, text)


def instant(micros: int) -> _dt.datetime:
    """An instant, in UTC."""
    try:
        return _EPOCH + _dt.timedelta(microseconds=micros)
    except OverflowError:
        ends = (_dt.datetime.min, _dt.datetime.max)
        return ends[micros > 0].replace(tzinfo=_dt.timezone.utc)


def micros(argument: str, value: object) -> int:
    """Microseconds since 1970 of an aware ``datetime``."""
    if not isinstance(value, _dt.datetime):
        raise TypeError(f"{argument} must be a datetime with a time zone, not {type(value).__name__}")
    if value.tzinfo is None:
        raise ValueError(f"{argument} has no time zone: datetime.now(timezone.utc) has one")
    return (value - _EPOCH) // _MICRO


def offset(seconds: int) -> _dt.timezone:
    """A fixed time zone."""
    return _dt.timezone(_dt.timedelta(seconds=seconds))


def _fraction(text: str) -> str:
    """Without zeros at the end, as PostgreSQL writes it."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def canonical(value: object, of: str) -> Optional[str]:
    """The canonical text of a value for a column of the type ``of``; ``None`` if the column does not take it."""
    kind = of.partition("(")[0]
    if isinstance(value, decimal.Decimal) and kind in ("decimal", "int16", "int32", "int64", "uint64"):
        if value.is_infinite():
            return "Infinity" if value > 0 else "-Infinity"
        return "NaN" if value.is_nan() else format(value, "f")
    if isinstance(value, int) and not isinstance(value, bool) and kind == "decimal":
        return str(value)
    if isinstance(value, _dt.datetime):
        if kind == "timestamptz" and value.tzinfo is not None:
            value = value.astimezone(_dt.timezone.utc).replace(tzinfo=None)
            return _fraction(value.isoformat(" ")) + "+00"
        if kind == "timestamp" and value.tzinfo is None:
            return _fraction(value.isoformat(" "))
        return None
    if isinstance(value, _dt.date) and kind == "date":
        return value.isoformat()
    if isinstance(value, _dt.time):
        if kind == "time" and value.tzinfo is None:
            return _fraction(value.isoformat())
        if kind == "timetz" and value.utcoffset() is not None:
            return _fraction(value.replace(tzinfo=None).isoformat()) + _zone(value)
        return None
    if isinstance(value, uuid.UUID) and kind == "uuid":
        return str(value)
    if kind == "json" and isinstance(value, (dict, list, int, float)):
        return json.dumps(value, ensure_ascii=False)
    if kind == "bytes" and isinstance(value, memoryview):
        return "\\x" + value.hex()
    return None


def _zone(value: _dt.time) -> str:
    seconds = int((value.utcoffset() or _dt.timedelta()).total_seconds())
    sign, seconds = ("-", -seconds) if seconds < 0 else ("+", seconds)
    parts = [seconds // 3600, seconds % 3600 // 60, seconds % 60]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return sign + ":".join(f"{p:02}" for p in parts)
