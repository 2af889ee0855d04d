"""A source, a sink and a checkpointer in Python, as a user would write them: a log in memory, and SQLite."""

from __future__ import annotations

import datetime as dt
import sqlite3
import threading
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import anabranch
from anabranch import (
    ACCEPTED,
    DURABLE,
    UNCHANGED,
    BatchBuilder,
    Chunk,
    Closed,
    Column,
    FencedError,
    Partition,
    Position,
    RejectedError,
    Table,
)

ORDERS = Table("orders", [Column("id", "int64"), Column("body", "text")], key=["id"], schema="public")
EPOCH = dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)


class Log:
    """The database: its transactions, and its rows."""

    def __init__(self) -> None:
        self.transactions: List[List[tuple]] = []
        self.rows: Dict[int, str] = {}
        self.appended = threading.Condition()
        self.acknowledged: List[Optional[Position]] = []

    def commit(self, statements: List[tuple]) -> None:
        with self.appended:
            for op, first, *second in statements:
                if op in ("insert", "update"):
                    self.rows[first] = second[0]
                elif op == "rekey":
                    self.rows[second[0]] = self.rows.pop(first)
                else:
                    del self.rows[first]
            # What a rekeyed row holds is told by the log.
            told = [(*s, self.rows[s[2]]) if s[0] == "rekey" else s for s in statements]
            self.transactions.append(told)
            self.appended.notify_all()


def rank(number: int) -> bytes:
    return number.to_bytes(8, "big")


def after(number: int) -> Position:
    return Position.after(rank(number), str(number).encode() if number else b"")


def time_of(number: int) -> dt.datetime:
    return EPOCH + dt.timedelta(seconds=number)


class LogSource(anabranch.Source):
    name = "log"

    def __init__(self, log: Log) -> None:
        self.log = log

    def prepare(self, resume: Any) -> Dict[str, str]:
        return {"log": "one"}

    def tables(self) -> List[Table]:
        return [ORDERS]

    def partitions(self) -> List[Partition]:
        return [Partition("all")]

    def open(self, partition: Partition, start: anabranch.StartFrom) -> "LogReader":
        number = int(start.position.token or b"0") if start.position else 0
        return LogReader(self.log, number, start.snapshots.get("public.orders"))

    def mark(self) -> Dict[str, Position]:
        return {"all": after(len(self.log.transactions))}

    def begin_snapshot(self, tables: List[Table]) -> "LogSnapshot":
        return LogSnapshot(self.log)

    def describe(self, position: Position) -> str:
        return (position.token or b"the start").decode()


class LogReader(anabranch.Reader):
    #: Changes of a batch: a long transaction is given in parts.
    most = 1000

    def __init__(self, log: Log, number: int, copied: Optional[Position]) -> None:
        self.log, self.number, self.copied, self.within = log, number, copied, 0

    def next(self) -> Any:
        with self.log.appended:
            self.log.appended.wait_for(lambda: len(self.log.transactions) > self.number, timeout=0.1)
            batch, end = BatchBuilder("all"), after(self.number)
            while self.number < len(self.log.transactions) and len(batch) < self.most:
                number = self.number + 1
                statements = self.log.transactions[self.number]
                batch.begin(rank(number), commit_time=time_of(number), sequence=self.within + 1)
                take = statements[self.within : self.within + self.most - len(batch)]
                if self.copied is None or after(number) > self.copied:
                    for statement in take:
                        change(batch, statement)
                self.within += len(take)
                if self.within < len(statements):
                    # Within a transaction: what resumes is the place before it.
                    end = Position(rank(number) + self.within.to_bytes(8, "big"), end.token)
                    break
                self.number, self.within, end = number, 0, after(number)
                batch.commit(end)
            return batch.finish(end, time_of(self.number))

    def acknowledge(self, through: Optional[Position]) -> None:
        self.log.acknowledged.append(through)


def change(batch: BatchBuilder, statement: tuple) -> None:
    op, first, *rest = statement
    if op == "insert":
        batch.insert(ORDERS, {"id": first, "body": rest[0]})
    elif op == "update":
        batch.update(ORDERS, (first, rest[0]))
    elif op == "rekey":
        batch.update(ORDERS, (rest[0], rest[1]), old={"id": first})
    else:
        batch.delete(ORDERS, {"id": first})


class LogSnapshot:
    def __init__(self, log: Log) -> None:
        with log.appended:
            self.point, rows = after(len(log.transactions)), sorted(log.rows.items())
        self.parts = [rows[:3], rows[3:]]
        self.chunks = [Chunk(ORDERS, str(n), len(part)) for n, part in enumerate(self.parts)]

    def open(self, table: str, token: str) -> "ChunkReader":
        assert table == "public.orders"
        return ChunkReader(self.parts[int(token)])


class ChunkReader:
    def __init__(self, rows: List[Tuple[int, str]]) -> None:
        self.rows: Optional[List[Tuple[int, str]]] = rows

    def next(self) -> Any:
        if self.rows is None:
            return Closed()
        batch = BatchBuilder("chunk")
        batch.begin(rank(1))
        batch.insert_many(ORDERS, self.rows)
        batch.commit(after(1))
        self.rows = None
        return batch.finish(after(1))

    def acknowledge(self, through: Any) -> None:
        pass


class SqliteSink(anabranch.Sink):
    """SQLite, with progress and epoch in the transaction of the rows. Values are stored as their texts."""

    name, transactional, max_lanes, schemas = "pysqlite", True, 1, False

    def __init__(self, path: Path) -> None:
        self.path = path

    def connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=60)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(
            "CREATE TABLE IF NOT EXISTS lane (pipeline TEXT, lane INTEGER, epoch INTEGER, progress TEXT, "
            "PRIMARY KEY (pipeline, lane))"
        )
        return db

    def take_over(self, claim: anabranch.Claim) -> List[str]:
        db = self.connect()
        try:
            db.execute("BEGIN IMMEDIATE")
            found = db.execute(
                "SELECT lane, epoch, progress FROM lane WHERE pipeline = ?", (claim.pipeline,)
            ).fetchall()
            if any(epoch > claim.epoch for _, epoch, _ in found):
                raise FencedError(f"a newer epoch writes for {claim.pipeline}")
            before = {lane: progress for lane, _, progress in found}
            for lane in {*before, *range(claim.lanes)}:
                text = claim.lane(lane, before.get(lane)) if lane < claim.lanes else before[lane]
                db.execute(
                    "INSERT OR REPLACE INTO lane VALUES (?, ?, ?, ?)", (claim.pipeline, lane, claim.epoch, text)
                )
            db.execute("COMMIT")
            return list(before.values())
        finally:
            db.close()

    def read_progress(self, pipeline: str) -> List[str]:
        db = self.connect()
        try:
            return [text for (text,) in db.execute("SELECT progress FROM lane WHERE pipeline = ?", (pipeline,))]
        finally:
            db.close()

    def open(self, lane: anabranch.Lane) -> "SqliteWriter":
        return SqliteWriter(self.connect(), lane)

    def describe(self, schema: str, name: str) -> Optional[Table]:
        db = self.connect()
        try:
            found = db.execute(f"PRAGMA table_info({quoted(name)})").fetchall()
        finally:
            db.close()
        key = [c[1] for c in sorted(found, key=lambda c: c[5]) if c[5]]
        return Table(name, [Column(c[1], "text") for c in found], key=key) if found else None

    def create(self, table: Table) -> None:
        db = self.connect()
        try:
            create(db, table, [])
        finally:
            db.close()

    def clear(self, schema: str, name: str) -> None:
        db = self.connect()
        try:
            db.execute(f"DELETE FROM {quoted(name)}")
        finally:
            db.close()

    def is_empty(self, schema: str, name: str) -> bool:
        db = self.connect()
        try:
            return db.execute(f"SELECT 1 FROM {quoted(name)} LIMIT 1").fetchone() is None
        finally:
            db.close()


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def create(db: sqlite3.Connection, table: Table, unique: List[str]) -> None:
    parts = [f"{quoted(c)} TEXT" for c in table.column_names]
    if table.key:
        parts.append(f"PRIMARY KEY ({', '.join(map(quoted, table.key))})")
    parts += [f"UNIQUE ({quoted(c)})" for c in unique]
    db.execute(f"CREATE TABLE {quoted(table.name)} ({', '.join(parts)})")


class SqliteWriter(anabranch.Writer):
    def __init__(self, db: sqlite3.Connection, lane: anabranch.Lane) -> None:
        self.db, self.lane, self.parts = db, lane, []

    def write(self, unit: anabranch.Unit) -> Any:
        self.parts.append(unit)
        if not unit.ends:
            return ACCEPTED
        parts, self.parts = self.parts, []
        self.db.execute("BEGIN IMMEDIATE")
        try:
            self.apply(parts)
            self.db.execute("COMMIT")
        except BaseException as error:
            self.db.execute("ROLLBACK")
            if isinstance(error, sqlite3.IntegrityError):
                raise RejectedError(f"SQLite refuses a row: {error}") from error
            raise
        return DURABLE

    def apply(self, parts: List[anabranch.Unit]) -> None:
        where = (self.lane.pipeline, self.lane.index if self.lane.purpose == "stream" else 0)
        found = self.db.execute("SELECT epoch, progress FROM lane WHERE pipeline = ? AND lane = ?", where).fetchone()
        if found is None or found[0] != self.lane.epoch:
            raise FencedError(f"another epoch than {self.lane.epoch} writes for {self.lane.pipeline}")
        tables: Dict[str, "Folded"] = {}
        for change in (c for part in parts for c in part):
            if change.op in ("insert", "update", "delete", "truncate"):
                table = change.table
                tables.setdefault(table.name, Folded(self.db, table)).apply(change, table)
        for folded in tables.values():
            folded.write()
        if self.lane.purpose == "stream":
            text = found[1]
            for part in parts:
                text = part.progress_after(text)
            self.db.execute("UPDATE lane SET progress = ? WHERE pipeline = ? AND lane = ?", (text, *where))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.db.close()


class Folded:
    """What becomes of the rows of a table: what is there goes first, so that unique values may change hands."""

    def __init__(self, db: sqlite3.Connection, table: Table) -> None:
        self.db, self.name, self.key = db, quoted(table.name), table.key
        self.rows: Dict[tuple, Optional[Dict[str, Any]]] = {}
        self.truncated = False

    def apply(self, change: anabranch.Change, table: Table) -> None:
        columns = table.column_names
        new = dict(zip(columns, change.new_texts)) if change.new_texts is not None else None
        old = dict(zip(columns, change.old_texts)) if change.old_texts is not None else None
        if change.op == "truncate":
            self.rows, self.truncated = {}, True
            self.db.execute(f"DELETE FROM {self.name}")
        elif not self.key:
            self.one_by_one(old, new)
        elif change.op == "insert":
            self.rows[self.of(new)] = new
        elif change.op == "delete":
            self.rows[self.of(old)] = None
        else:
            place = self.of(old or new)
            there = self.current(place)
            if there is None and UNCHANGED in new.values():
                raise RejectedError("a row that is not there cannot keep a column that was not sent")
            row = {**(there or {}), **{c: v for c, v in new.items() if v is not UNCHANGED}}
            self.rows[place] = None
            self.rows[self.of(row)] = row

    def of(self, row: Any) -> tuple:
        return tuple(row[c] for c in self.key)

    def where(self) -> str:
        return " AND ".join(f"{quoted(c)} = ?" for c in self.key)

    def current(self, place: tuple) -> Optional[Dict[str, Any]]:
        if place in self.rows or self.truncated:
            return self.rows.get(place)
        cursor = self.db.execute(f"SELECT * FROM {self.name} WHERE {self.where()}", place)
        row = cursor.fetchone()
        return None if row is None else dict(zip((c[0] for c in cursor.description), row))

    def one_by_one(self, old: Any, new: Any) -> None:
        if old is not None:
            same = " AND ".join(f"{quoted(c)} IS ?" for c in old)
            self.db.execute(
                f"DELETE FROM {self.name} WHERE rowid = (SELECT rowid FROM {self.name} WHERE {same} LIMIT 1)",
                list(old.values()),
            )
        if new is not None:
            self.insert(new)

    def insert(self, row: Dict[str, Any]) -> None:
        names, marks = ", ".join(map(quoted, row)), ", ".join("?" * len(row))
        self.db.execute(f"INSERT INTO {self.name} ({names}) VALUES ({marks})", list(row.values()))

    def write(self) -> None:
        if self.rows:
            self.db.executemany(f"DELETE FROM {self.name} WHERE {self.where()}", list(self.rows))
        for row in self.rows.values():
            if row is not None:
                self.insert(row)


class SqliteCheckpointer(anabranch.Checkpointer):
    def __init__(self, path: Path) -> None:
        self.path = path

    def connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, timeout=60)
        db.execute("CREATE TABLE IF NOT EXISTS checkpoint (pipeline TEXT PRIMARY KEY, version INTEGER, text TEXT)")
        return db

    def load(self, pipeline: str) -> Optional[Tuple[int, str]]:
        db = self.connect()
        try:
            return db.execute("SELECT version, text FROM checkpoint WHERE pipeline = ?", (pipeline,)).fetchone()
        finally:
            db.close()

    def save(self, pipeline: str, expected: Optional[int], text: str) -> Optional[int]:
        db = self.connect()
        try:
            if expected is None:
                done = db.execute("INSERT OR IGNORE INTO checkpoint VALUES (?, 1, ?)", (pipeline, text))
            else:
                done = db.execute(
                    "UPDATE checkpoint SET version = version + 1, text = ? WHERE pipeline = ? AND version = ?",
                    (text, pipeline, expected),
                )
            return (expected or 0) + 1 if done.rowcount == 1 else None
        finally:
            db.close()
