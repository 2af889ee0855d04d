"""Connectors in Python: through the conformance suites, and in pipelines of their own."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any, List, Optional

import anabranch
import pytest
from anabranch import ByKey, Closed, LeftOut, Memory, Partition, Pipeline, Sqlite, Table
from anabranch import _anabranch as native
from connectors_in_python import ORDERS, Log, LogReader, LogSource, SqliteCheckpointer, SqliteSink, create, quoted
from conftest import PATIENCE, until

suites = pytest.mark.skipif(
    not hasattr(native, "conformance_sink"), reason="the module was built without its feature testkit"
)


def asynchronous(object_: Any) -> Any:
    """The same connector with asynchronous methods, and so are the objects that it gives."""

    class Asynchronous:
        def __getattr__(self, name: str) -> Any:
            value = getattr(object_, name)
            if not inspect.ismethod(value) or name in ("describe", "contract") and isinstance(object_, anabranch.Source):
                return value

            async def method(*arguments: Any) -> Any:
                given = await asyncio.to_thread(value, *arguments)
                return asynchronous(given) if name in ("open", "begin_snapshot") else given

            return method

    return Asynchronous()


class SinkUnderTest:
    def __init__(self, path: Path, wrap: Any) -> None:
        self.sink, self.wrap = SqliteSink(path), wrap

    def connect(self) -> Any:
        return self.wrap(self.sink)

    def create_table(self, table: Table, unique: List[str]) -> None:
        db = self.sink.connect()
        create(db, table, unique)
        db.close()

    def read_table(self, table: Table) -> List[List[Optional[str]]]:
        db = self.sink.connect()
        names = ", ".join(map(quoted, table.column_names))
        rows = [list(row) for row in db.execute(f"SELECT {names} FROM {quoted(table.name)}")]
        db.close()
        return rows


class SourceUnderTest:
    def __init__(self, wrap: Any) -> None:
        self.log, self.wrap = Log(), wrap

    def connect(self) -> Any:
        return self.wrap(LogSource(self.log))

    def table(self) -> Table:
        return ORDERS

    def commit(self, statements: List[tuple]) -> None:
        self.log.commit(statements)


class CheckpointerUnderTest:
    def __init__(self, path: Path, wrap: Any) -> None:
        self.path, self.wrap = path, wrap

    def connect(self) -> Any:
        return self.wrap(SqliteCheckpointer(self.path))


def same(connector: Any) -> Any:
    return connector


@suites
@pytest.mark.parametrize("wrap", [same, asynchronous])
def test_a_sink_in_python_conforms(wrap: Any, tmp_path: Path) -> None:
    native.conformance_sink(SinkUnderTest(tmp_path / "target.db", wrap)).wait()


@suites
@pytest.mark.parametrize("wrap", [same, asynchronous])
def test_a_source_in_python_conforms(wrap: Any) -> None:
    native.conformance_source(SourceUnderTest(wrap)).wait()


@suites
@pytest.mark.parametrize("wrap", [same, asynchronous])
def test_a_checkpointer_in_python_conforms(wrap: Any, tmp_path: Path) -> None:
    native.conformance_checkpointer(CheckpointerUnderTest(tmp_path / "checkpoints.db", wrap)).wait()


@suites
def test_the_suite_finds_a_sink_that_forgets(tmp_path: Path) -> None:
    class Forgets(SinkUnderTest):
        def read_table(self, table: Table) -> List[List[Optional[str]]]:
            return super().read_table(table)[1:]

    with pytest.raises(anabranch.FatalError, match="rows of"):
        native.conformance_sink(Forgets(tmp_path / "target.db", same)).wait()


def rows(path: Path) -> list:
    with sqlite3.connect(path) as db:
        return sorted((int(id), body) for id, body in db.execute("SELECT id, body FROM orders"))


@pytest.mark.parametrize("wrap", [same, asynchronous])
def test_python_at_both_ends(wrap: Any, tmp_path: Path) -> None:
    log, path = Log(), tmp_path / "target.db"
    log.commit([("insert", n, f"it's {n}") for n in range(10)])
    made = (
        Pipeline("both-ends")
        .source(wrap(LogSource(log)))
        .sink(wrap(SqliteSink(path)))
        .checkpointer(wrap(SqliteCheckpointer(tmp_path / "state.db")))
        .create_tables()
    )
    with made.start() as running:
        assert running.drain(PATIENCE)
        log.commit([("update", 1, "new"), ("rekey", 2, 20), ("delete", 3)])
        assert running.drain(PATIENCE)
        assert running.status().partitions["all"].position == "2"
        assert rows(path) == sorted(log.rows.items())
    log.commit([("insert", 99, "late")])
    with made.start() as running:
        assert running.drain(PATIENCE)
        assert running.status().counters.snapshot_rows == 10, "the tables are not copied again"
    assert rows(path) == sorted(log.rows.items())
    assert any(position is not None for position in log.acknowledged)


class EndingReader(LogReader):
    def next(self) -> Any:
        return Closed() if self.number == len(self.log.transactions) else super().next()


class EndingSource(LogSource):
    ends = True

    def open(self, partition: Partition, start: Any) -> LogReader:
        reader = super().open(partition, start)
        return EndingReader(self.log, reader.number, reader.copied)


def test_a_source_that_ends_ends_the_pipeline(tmp_path: Path) -> None:
    log = Log()
    log.commit([("insert", 1, "one")])
    made = Pipeline("p").source(EndingSource(log)).sink(Sqlite(tmp_path / "x.db")).snapshot("never").create_tables()
    assert made.run().phase == "stopped"
    with sqlite3.connect(tmp_path / "x.db") as db:
        assert db.execute("SELECT id, body FROM orders").fetchall() == [(1, "one")]


def test_asynchronous_connectors_run_in_the_loop_of_the_caller(tmp_path: Path) -> None:
    loops = set()

    class Noticing(LogSource):
        async def tables(self) -> List[Table]:  # type: ignore[override]
            loops.add(asyncio.get_running_loop())
            return [ORDERS]

    log = Log()
    made = Pipeline("loop").source(Noticing(log)).sink(Sqlite(tmp_path / "x.db")).create_tables()

    async def replicate() -> None:
        async with await made.start_async() as running:
            assert await running.drain_async(PATIENCE)
        assert loops == {asyncio.get_running_loop()}

    asyncio.run(replicate())


def pipeline(log: Log, path: Path) -> Pipeline:
    return Pipeline("p").source(LogSource(log)).sink(Sqlite(path)).create_tables().retry(attempts=3)


def test_transforms_get_whole_batches(tmp_path: Path) -> None:
    log, path = Log(), tmp_path / "target.db"
    log.commit([("insert", n, f"body {n}") for n in range(6)])
    sizes = []

    class Upper(anabranch.Transform):
        def apply(self, batch: anabranch.ChangeBatch) -> anabranch.ChangeBatch:
            sizes.append(len(batch))

            def each(change: anabranch.Change) -> Any:
                if change.op == "schema":
                    return True
                if change.op != "delete" and change.new["id"] == 1:
                    return LeftOut("nobody wants it")
                if change.op == "insert":
                    return {"body": change.new["body"].upper()}
                return change

            return batch.rewrite(each)

    made = pipeline(log, path).transform(Upper()).transform(lambda batch: batch)
    with made.start() as running:
        assert running.drain(PATIENCE)
        log.commit([("insert", 7, "seven"), ("update", 2, "as it is"), ("update", 1, "x"), ("delete", 3)])
        assert running.drain(PATIENCE)
        assert running.status().counters.filtered == 1
    assert rows(path) == [(0, "BODY 0"), (2, "as it is"), (4, "BODY 4"), (5, "BODY 5"), (7, "SEVEN")]
    assert max(sizes) >= 3
    kept = made.letters.list(["skipped", "applied", "open", "held"])
    assert any(letter.reason == "nobody wants it" and letter.klass == "filtered" for letter in kept)


def test_a_sharder_chooses_for_each_change(tmp_path: Path) -> None:
    log, seen = Log(), []
    log.commit([("insert", n, str(n)) for n in range(4)])

    class Even(anabranch.Sharder):
        def shards(self, batch: anabranch.ChangeBatch) -> List[Optional[str]]:
            return [None if c.op == "schema" else f"shard{c.new['id'] % 2}" for c in batch]

    class Watching(anabranch.Transform):
        def apply(self, batch: anabranch.ChangeBatch) -> anabranch.ChangeBatch:
            seen.extend((c.new["id"], c.shard) for c in batch if c.op == "insert")
            return batch

    made = pipeline(log, tmp_path / "x.db").transform(Even()).transform(Watching())
    with made.start() as running:
        assert running.drain(PATIENCE)
    assert sorted(set(seen)) == [(0, "shard0"), (1, "shard1"), (2, "shard0"), (3, "shard1")]


class Failing(SqliteSink):
    """A sink whose writer raises what it is told to, once or always."""

    def __init__(self, path: Path, error: BaseException, times: int) -> None:
        super().__init__(path)
        self.error, self.times = error, times

    def open(self, lane: anabranch.Lane) -> Any:
        sink, writer = self, super().open(lane)
        write = writer.write

        def failing(unit: anabranch.Unit) -> Any:
            if sink.times > 0 and len(unit):
                sink.times -= 1
                raise sink.error
            return write(unit)

        writer.write = failing  # type: ignore[method-assign]
        return writer


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("boom"), "fatal"),
        (anabranch.FatalError("boom"), "fatal"),
        (anabranch.ConfigError("sink.colour: boom"), "config"),
        (anabranch.FencedError("boom"), "fenced"),
        (KeyError("boom"), "fatal"),
    ],
)
def test_what_a_connector_raises_ends_the_pipeline(error: BaseException, kind: str, tmp_path: Path) -> None:
    log = Log()
    log.commit([("insert", 1, "one")])
    sink = Failing(tmp_path / "x.db", error, times=1000)
    made = Pipeline("p").source(LogSource(log)).sink(sink).checkpointer(Memory()).create_tables()
    with pytest.raises(anabranch.Error, match="boom") as raised:
        with made.start() as running:
            running.wait()
    assert raised.value.kind == kind and type(raised.value).__name__.lower() == f"{kind}error"


def test_what_may_mend_itself_is_tried_again(tmp_path: Path) -> None:
    log, path = Log(), tmp_path / "x.db"
    log.commit([("insert", 1, "one")])
    for error in (ConnectionResetError("gone"), anabranch.TransientError("busy"), TimeoutError()):
        sink = Failing(path, error, times=2)
        made = Pipeline("p").source(LogSource(log)).sink(sink).checkpointer(SqliteCheckpointer(tmp_path / "s.db"))
        with made.create_tables().start() as running:
            assert running.drain(PATIENCE)
        assert sink.times == 0
        log.commit([("update", 1, str(error))])
    assert len(rows(path)) == 1


def test_a_defect_is_logged_with_its_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(LogSource):
        def tables(self) -> List[Table]:
            raise ValueError("a defect")

    with caplog.at_level(logging.INFO, "anabranch"), pytest.raises(anabranch.FatalError, match="Broken.tables .*a defect"):
        pipeline(Log(), tmp_path / "x.db").source(Broken(Log())).start()
    told = [record for record in caplog.records if record.name == "anabranch.python"]
    assert told and told[0].exc_info and told[0].exc_info[0] is ValueError


def test_the_library_logs_to_logging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    log.commit([("insert", 1, "one")])
    sink = Failing(tmp_path / "x.db", ConnectionResetError("gone"), times=1)
    made = Pipeline("p").source(LogSource(log)).sink(sink).checkpointer(Memory()).create_tables()
    with caplog.at_level(logging.DEBUG, "anabranch"):
        with made.start() as running:
            assert running.drain(PATIENCE)
        until(lambda: any(r.name.startswith("anabranch.core") for r in caplog.records), "a record of the core")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda batch: None, "gave a NoneType .*give a ChangeBatch"),
        (lambda batch: 1 / 0, "ZeroDivisionError"),
        (lambda batch: batch.rewrite(lambda change: 7), "a rewrite gives"),
        (lambda batch: batch.rewrite(lambda change: {"colour": 1}), "has no column colour|without a new row"),
        (lambda batch: batch.rewrite(lambda change: {"id": b"x"} if change.new else True), "column id .int64. does not take bytes"),
    ],
)
def test_a_mistake_in_a_transform_is_told(given: Any, told: str, tmp_path: Path) -> None:
    log = Log()
    log.commit([("insert", 1, "one")])
    made = pipeline(log, tmp_path / "x.db").transform(given)
    with pytest.raises(anabranch.Error, match=told):
        with made.start() as running:
            running.wait()


def test_a_mistake_in_a_batch_is_told() -> None:
    batch, end = anabranch.BatchBuilder("all"), anabranch.Position.after(b"1", b"1")
    with pytest.raises(ValueError, match="call begin first"):
        batch.insert(ORDERS, (1, "x"))
    batch.begin(b"1")
    for row, told in [
        ((1,), "has 2 values"),
        ({"id": 1}, "lacks the column body"),
        ({"id": 1, "body": "x", "colour": 1}, "has no column colour"),
        ((1, 2), "column body .text. does not take int"),
        ((1.5, "x"), "column id .int64. does not take float"),
        ("ab", "a row is a mapping"),
    ]:
        with pytest.raises((ValueError, TypeError), match=told):
            batch.insert(ORDERS, row)
    if hasattr(sys, "get_int_max_str_digits"):
        with pytest.raises(ValueError, match="digits"):
            batch.insert(ORDERS, (10**5000, "x"))
    with pytest.raises(ValueError, match="lacks id, of the key"):
        batch.delete(ORDERS, {"body": "x"})
    assert len(batch) == 0, "a mistake leaves nothing half done"
    with pytest.raises(ValueError, match="has no time zone"):
        import datetime

        batch.finish(end, datetime.datetime(2024, 1, 1))
    batch.commit(end)
    assert len(batch.finish(end)) == 0
    with pytest.raises(ValueError, match="finished"):
        batch.begin(b"2")


def test_a_pipeline_goes_on_without_being_held(tmp_path: Path) -> None:
    """Dropping the handle stops the pipeline; nothing hangs."""
    log = Log()
    log.commit([("insert", 1, "one")])
    running = pipeline(log, tmp_path / "x.db").start()
    assert running.drain(PATIENCE)
    del running
    count = threading.active_count()
    again = pipeline(log, tmp_path / "x.db").start()
    assert again.drain(PATIENCE)
    again.stop()
    again.stop()
    assert threading.active_count() <= count + 64
