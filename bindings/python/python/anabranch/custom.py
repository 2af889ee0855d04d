"""Connectors of one's own. Inherit from these, or have the same methods.

Methods may be ``async``: then they run in the event loop that ``start_async`` was awaited in, or in one that the
library runs. Others are called from threads of the library; of one reader, and of one writer, never two calls at a
time. Whole batches cross the border.

What a method raises says what happens: an :class:`anabranch.Error` keeps its kind; a ``ConnectionError`` or
``TimeoutError`` is tried again (of ``write`` and ``flush`` after reading the stored progress, for it may have happened);
anything else is a defect, which ends the pipeline."""

from __future__ import annotations

import abc
from typing import Awaitable, Mapping, Optional, Sequence, Tuple, TypeVar, Union

from ._anabranch import ChangeBatch, Position, Table, Unit
from ._types import Checkpoint, Closed, Lane, Partition, StartFrom, Stopped, Written


T = TypeVar("T")
MaybeAsync = Union[T, Awaitable[T]]


class Source(abc.ABC):
    """Where changes come from. ``prepare`` is called first at every start.

    Optional abilities are methods that a class has or has not:

    * ``mark()``: for each partition a position such that everything committed before the call lies at or before
      it. It makes draining possible.
    * ``begin_snapshot(tables)``: an object with ``point`` (a position), ``chunks`` (a list of :class:`Chunk`) and
      ``open(table, token)``, a reader of inserts that ends with :class:`Closed`. It makes copying possible.
    * ``retention()``: a dict with ``held_bytes``, ``bytes`` and ``seconds`` that are left,
      ``unread_bytes``, and ``lost``: why what is needed is gone.
    * ``check(resume)``: as ``prepare``, without creating anything: the statements that ``prepare`` would run.
    * ``describe(position)``: the position as users write it.
    """

    #: A short name, for errors and status.
    name: str = "python"
    #: What it guarantees of the order: ``transactions`` (one partition gives whole transactions in commit order),
    #: ``commit_time_per_partition`` or ``key``.
    order: str = "transactions"
    #: Whether it comes to an end: once every partition is closed, without children, the pipeline ends by itself.
    ends: bool = False

    @abc.abstractmethod
    def prepare(self, resume: Optional[Checkpoint]) -> "MaybeAsync[Mapping[str, str]]":
        """Connects, creates what is missing, and gives what tells this source from another. That it is the one that
        ``resume`` is of is compared by the library; that nothing since then is lost is for this method to say."""

    @abc.abstractmethod
    def tables(self) -> "MaybeAsync[Sequence[Table]]":
        """The tables that it sends."""

    @abc.abstractmethod
    def partitions(self) -> "MaybeAsync[Sequence[Partition]]":
        """The partitions known now."""

    @abc.abstractmethod
    def open(self, partition: Partition, start: StartFrom) -> "MaybeAsync[Reader]":
        """A reader of one partition. At most one is open for it at a time."""


class Reader(abc.ABC):
    """Reads one partition."""

    @abc.abstractmethod
    def next(self) -> "MaybeAsync[Union[ChangeBatch, Closed, Stopped]]":
        """The next batch. On a quiet source a batch without changes, at least every few seconds: it moves the safe
        time, and stopping waits for it."""

    @abc.abstractmethod
    def acknowledge(self, through: Optional[Position]) -> "MaybeAsync[None]":
        """Everything through here is durable: the source may forget it. ``None`` if nothing is yet."""

    def close(self) -> "MaybeAsync[None]":
        """Ends the reading."""


class Sink(abc.ABC):
    """Where changes go. Without transactions it is told everything at least once. With them (``transactional``) it
    stores progress in the transaction of the rows, and is told everything exactly once in effect:

    * ``take_over(claim)``: in one transaction, fails with ``FencedError`` if a lane has a newer epoch, stores the
      claim's epoch for every lane, and ``claim.lane(index, before)`` for those below ``claim.lanes``; gives the texts
      that were stored before.
    * ``read_progress(pipeline)``: the texts that are stored.
    * the writer stores ``unit.progress_after(text)`` in the transaction of each unit of the stream, after it has
      found the lane's epoch to be its own.

    A sink that knows its tables has ``describe(schema, name)`` (a :class:`Table` or ``None``), ``clear(schema, name)``,
    ``is_empty(schema, name)``, and perhaps ``create(table)`` and ``contract(column, existing)``, a triple of the
    target's type, ``exact``, ``widening``, ``lossy`` or ``unsupported``, and a note. One that keeps checkpoints has
    ``checkpointer()``."""

    #: A short name, for errors and status.
    name: str = "python"
    #: Whether a unit, with its progress, takes effect wholly or not at all.
    transactional: bool = False
    #: How many lanes can write at a time.
    max_lanes: int = 1
    #: Whether its tables live in schemas.
    schemas: bool = True

    @abc.abstractmethod
    def open(self, lane: Lane) -> "MaybeAsync[Writer]":
        """A writer of one lane."""


class Writer(abc.ABC):
    """Writes the units of one lane, in order."""

    @abc.abstractmethod
    def write(self, unit: Unit) -> "MaybeAsync[Optional[Written]]":
        """Applies a unit: all of it, or nothing. Say :data:`DURABLE` only for what survives a crash of the target:
        then the source may forget it. :data:`ACCEPTED`, or ``None``, is durable after the next ``flush``. Units that
        are parts (``unit.part``) take effect with the one that ``ends``."""

    @abc.abstractmethod
    def flush(self) -> "MaybeAsync[None]":
        """Returns when every accepted unit is durable."""

    def close(self) -> "MaybeAsync[None]":
        """Ends the writing."""


class Transform(abc.ABC):
    """Changes batches on their way. Not asynchronous, and the same for the same batch: after a crash it is asked
    again."""

    @abc.abstractmethod
    def apply(self, batch: ChangeBatch) -> ChangeBatch:
        """The batch as it goes on: itself, or what ``batch.rewrite`` gives."""


class Sharder(abc.ABC):
    """Chooses the shard of each change. A row must stay in its shard."""

    @abc.abstractmethod
    def shards(self, batch: ChangeBatch) -> "Sequence[Optional[str]]":
        """One for each change of the batch; ``None`` leaves it as it is."""


class Checkpointer(abc.ABC):
    """Keeps a text for each pipeline, with compare-and-set: of two that save over one version exactly one succeeds."""

    @abc.abstractmethod
    def load(self, pipeline: str) -> "MaybeAsync[Optional[Tuple[int, str]]]":
        """What is stored, with its version; ``None`` if nothing is."""

    @abc.abstractmethod
    def save(self, pipeline: str, expected: Optional[int], text: str) -> "MaybeAsync[Optional[int]]":
        """Stores the text durably if what is stored still has the version ``expected`` (``None``: nothing is stored).
        The new version, which is greater; ``None`` if it has another version."""
