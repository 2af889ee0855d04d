"""What pipelines tell: attributes as in the JSON of the command line, times as ``datetime``."""

from __future__ import annotations

import datetime as _dt
import html
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from ._types import instant

# Instants, in microseconds since 1970.
_TIMES = frozenset({"last_seen", "safe_time", "at", "began", "ended", "commit_time", "last_attempt"})


def _of(name: str, value: Any) -> Any:
    if name in _TIMES and isinstance(value, int) and not isinstance(value, bool):
        return instant(value)
    if isinstance(value, dict):
        return Record(value)
    if isinstance(value, list):
        return [_of("", item) for item in value]
    return value


class Record(Mapping[str, Any]):
    """A mapping whose keys are attributes too. A key of a later version of the library is there as well."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = {name: _of(name, value) for name, value in data.items()}
        self._json = data

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._data[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name} (it has: {', '.join(self._data)})") from None

    def __dir__(self) -> List[str]:
        return [*super().__dir__(), *(name for name in self._data if name.isidentifier())]

    def __repr__(self) -> str:
        parts = (f"{name}={value!r}" for name, value in self._data.items())
        return f"{type(self).__name__}({', '.join(parts)})"

    def to_dict(self) -> Dict[str, Any]:
        """As the library told it: instants are microseconds since 1970, in UTC."""
        return dict(self._json)


def _table(title: str, rows: "List[Tuple[str, Any]]") -> str:
    """A table of two columns, for notebooks."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
        for name, value in rows
        if value is not None
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"


class Status(Record):
    """How far a pipeline is. Times are of the source's clock unless said otherwise."""

    pipeline: str
    #: ``starting``, ``snapshot``, ``streaming``, ``retrying``, ``paused``, ``stopped`` or ``failed``.
    phase: str
    #: When the process that runs it was last seen, by that machine's clock.
    last_seen: Optional[_dt.datetime]
    epoch: int
    #: Everything committed at or before this time is in the target.
    safe_time: Optional[_dt.datetime]
    lag_seconds: Optional[float]
    lag_bytes: Optional[int]
    lag_changes: int
    #: ``changes``, ``transactions``, ``snapshot_rows``, ``dead_letters``, ``filtered``, ``skipped``, ``stale``.
    counters: Record
    dead_letters_open: int
    retention: Optional[Record]
    snapshot: Optional[Record]
    partitions: Record
    identity: Record
    last_error: Optional[str]
    #: What that error asks for: ``transient``, ``config`` ...
    last_error_kind: Optional[str]
    failures: int

    def __repr__(self) -> str:
        return f"<Status {' '.join(self._words())}>"

    def _words(self) -> Iterator[str]:
        yield f"{self.pipeline}: {self.phase},"
        yield f"{self.counters.snapshot_rows} rows copied, {self.counters.changes} changes"
        if self.safe_time is not None:
            yield f"safe to {self.safe_time.isoformat(timespec='milliseconds')}"
        if self.dead_letters_open:
            yield f"{self.dead_letters_open} dead letters"
        if self.last_error is not None:
            yield f"last error: {self.last_error}"

    def _repr_html_(self) -> str:
        lag = None if self.lag_seconds is None else f"{self.lag_seconds:.1f} s"
        rows: List[Tuple[str, Any]] = [
            ("phase", self.phase),
            ("rows copied", f"{self.counters.snapshot_rows:,}"),
            ("changes", f"{self.counters.changes:,}"),
            ("transactions", f"{self.counters.transactions:,}"),
            ("safe time", self.safe_time),
            ("lag", lag),
            ("waiting changes", self.lag_changes),
            ("dead letters", self.dead_letters_open or None),
            ("last error", self.last_error),
        ]
        return _table(self.pipeline, rows)


class Drained(Record):
    """The answer of a drain. It is true if everything committed before the call is in the target."""

    drained: bool
    #: Whether the marker was reached: with open dead letters that is not enough.
    marker_reached: bool
    marker: Record
    reached: Record
    dead_letters_open: int

    def __bool__(self) -> bool:
        return bool(self.drained)

    def __repr__(self) -> str:
        return f"<Drained {self.drained}: marker reached {self.marker_reached}, {self.dead_letters_open} dead letters>"


class Health(Record):
    """Whether a pipeline's data path lives. It is true unless that is dead."""

    #: ``moving``, ``idle``, ``paused`` or ``dead``.
    life: str
    #: Why it is dead.
    reason: Optional[str]
    heard_seconds: float
    written_seconds: Optional[float]

    def __bool__(self) -> bool:
        return self.life != "dead"

    def __repr__(self) -> str:
        return f"<Health {self.life}{f': {self.reason}' if self.reason else ''}>"


class Preflight(Record):
    """What becomes of each column. ``print`` it; it is true if nothing keeps the pipeline from starting."""

    tables: List[Record]
    #: What a start would run on the source.
    source_statements: List[str]
    text: str
    #: What has to be mended first; ``None`` if nothing.
    verdict: Optional[str]

    def __bool__(self) -> bool:
        return self.verdict is None

    def __str__(self) -> str:
        return str(self.text)

    def __repr__(self) -> str:
        return f"<Preflight of {len(self.tables)} tables: {self.verdict or 'ok'}>"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text)}</pre>"


class Verified(Record):
    """The answer of a comparison: true if all tables are equal."""

    pipeline: str
    equal: bool
    began: _dt.datetime
    ended: _dt.datetime
    tables: List[Record]

    def __bool__(self) -> bool:
        return bool(self.equal)

    def __repr__(self) -> str:
        return f"<Verified {self.pipeline}: {'equal' if self.equal else 'NOT equal'}, {len(self.tables)} tables>"

    def _repr_html_(self) -> str:
        def line(t: Record) -> Tuple[str, str]:
            name = ".".join(part for part in (t.table.schema, t.table.name) if part)
            told = "equal" if t.equal else f"{t.missing} missing, {t.extra} extra, {t.changed} changed"
            return name, f"{t.source_rows:,} rows, {told}"

        return _table(f"{self.pipeline}: {'equal' if self.equal else 'NOT equal'}", [line(t) for t in self.tables])


class DeadLetter(Record):
    """A change that was not applied. It has the row: keep it out of logs."""

    id: str
    #: ``retry``, ``severe``, ``skip`` or ``filtered``.
    klass: str
    state: str
    reason: str
    op: Any
    attempts: int

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data)
        self._data["klass"] = self._data.get("class")

    def __repr__(self) -> str:
        return f"<DeadLetter {self.id} {self.state} {self.klass}: {self.reason}>"
