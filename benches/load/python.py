"""What benches/load/python.rs starts: pipelines from Python, and batches to Arrow.

    python.py pipeline CONFIG       runs it until it is drained, and tells what that took, as JSON
    python.py units|arrow|rows CONFIG    the same, into a sink in Python
    python.py arrow ROWS            (a number) prints how fast a batch goes to Arrow
"""

from __future__ import annotations

import datetime as dt
import io
import json
import sys
import time
from decimal import Decimal
from typing import Any, Callable, List

import pyarrow as pa
import pyarrow.csv
from anabranch import DURABLE, BatchBuilder, Column, Memory, Pipeline, Position, Sink, Table, Unit, Writer

#: As benches/load/setting.rs has it.
BENCH = Table(
    "bench",
    [
        Column("id", "int64"),
        Column("account", "int32"),
        Column("amount", "decimal(12,2)"),
        Column("note", "text"),
        Column("changed_at", "timestamptz"),
    ],
    key=["id"],
)
TYPES = [pa.int64(), pa.int32(), pa.decimal128(12, 2), pa.string(), pa.timestamp("us", "UTC")]
START = dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)
ROUNDS = 5


def peak_kib() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def run(pipeline: Pipeline) -> None:
    """As ``pipeline`` in child.rs: the same calls are timed."""
    cpu, begin = time.process_time(), time.perf_counter()
    running = pipeline.start()
    running.drain()
    seconds = time.perf_counter() - begin
    counters = running.status().counters
    used = {"cpu_seconds": time.process_time() - cpu, "peak_kib": peak_kib()}
    running.stop()
    told = {"seconds": seconds, "used": used}
    print(json.dumps({**told, "changes": counters.changes, "snapshot_rows": counters.snapshot_rows}))


class Custom(Sink):
    """Takes everything and keeps nothing, after ``look`` had each unit."""

    name = "custom"

    def __init__(self, look: Callable[[Unit], Any]) -> None:
        self.look = look

    def open(self, lane: Any) -> "Look":
        return Look(self.look)


class Look(Writer):
    def __init__(self, look: Callable[[Unit], Any]) -> None:
        self.look = look

    def write(self, unit: Unit) -> Any:
        self.look(unit)
        return DURABLE

    def flush(self) -> None:
        pass


def tables(unit: Any) -> List[pa.Table]:
    return [pa.table(changes) for changes in unit.tables()]


def rows(unit: Any) -> None:
    for change in unit.changes:
        change.op, change.new_values  # noqa: B018


LOOKS: "dict[str, Callable[[Unit], Any]]" = {"units": len, "arrow": tables, "rows": rows}


class Handed:
    """A table that pyarrow has, as another library would hand it over."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


def best(what: Callable[[], Any]) -> float:
    def once() -> float:
        begin = time.perf_counter()
        what()
        return time.perf_counter() - begin

    return min(once() for _ in range(ROUNDS))


def arrow(count: int) -> None:
    made = [
        (n, n % 100_000, Decimal(n % 1_000_000) / 100, f"order {n:032x}", START + dt.timedelta(seconds=n))
        for n in range(count)
    ]
    builder, end = BatchBuilder("p"), Position.after(b"1", b"1")
    builder.begin(b"1", commit_time=START)
    builder.insert_many(BENCH, made)
    builder.commit(end)
    batch = builder.finish(end)

    (table,) = tables(batch)
    names = [column.name for column in BENCH.columns]
    assert table.num_rows == count and table["amount"][count - 1].as_py() == made[-1][2]
    columns = table.select(names)
    text = io.BytesIO()
    pa.csv.write_csv(columns.set_column(4, "changed_at", columns["changed_at"].cast(pa.string())), text)
    convert = pa.csv.ConvertOptions(column_types=dict(zip(names, TYPES)))

    def by_hand() -> pa.Table:
        values = zip(*(change.new_values for change in batch.changes))
        return pa.table([pa.array(column, of) for column, of in zip(values, TYPES)], names=names)

    def csv() -> pa.Table:
        # Of one thread, as the others.
        reading = pa.csv.ReadOptions(use_threads=False)
        return pa.csv.read_csv(pa.BufferReader(text.getvalue()), read_options=reading, convert_options=convert)

    assert by_hand().equals(columns.cast(by_hand().schema)) and csv().num_rows == count
    print(f"\n{count} rows to Arrow, of {len(names)} columns, {table.nbytes / count:.0f} bytes a row; the best of {ROUNDS}\n")
    print(f"{'':<52} {'rows/s':>12} {'MB/s':>9}")
    for name, what in [
        ("a batch, by the PyCapsule interface", lambda: tables(batch)),
        ("a table of pyarrow's own, by the same interface", lambda: pa.table(Handed(table))),
        ("pyarrow reads the same rows from CSV", csv),
        ("row by row to Python values", lambda: rows(batch)),
        ("row by row to Python values, and these to Arrow", by_hand),
    ]:
        seconds = best(what)
        print(f"{name:<52} {count / seconds:>12.0f} {table.nbytes / seconds / 1e6:>9.1f}")


def main(what: str, given: str) -> None:
    if what == "pipeline":
        run(Pipeline.from_config(given))
    elif given.isdigit():
        arrow(int(given))
    else:
        run(Pipeline.from_config(given).sink(Custom(LOOKS[what])).checkpointer(Memory()))


if __name__ == "__main__":
    main(*sys.argv[1:])
