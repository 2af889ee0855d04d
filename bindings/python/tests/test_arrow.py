"""Batches to Arrow, and the values of rows."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any, List

import anabranch
import pyarrow as pa
import pytest
from anabranch import UNCHANGED, BatchBuilder, ChangeBatch, Column, Json, Position, Table

UTC = dt.timezone.utc
ONE = uuid.UUID("7a5b6d3e-0000-4000-8000-000000000001")

# Type of the column, its value as Python has it, what Arrow gives, and its type.
VALUES = [
    ("int16", -7, -7, pa.int16()),
    ("int32", 2**31 - 1, 2**31 - 1, pa.int32()),
    ("int64", -(2**63), -(2**63), pa.int64()),
    ("uint64", 2**64 - 1, 2**64 - 1, pa.uint64()),
    ("float32", 0.5, 0.5, pa.float32()),
    ("float64", 1e300, 1e300, pa.float64()),
    ("bool", True, True, pa.bool_()),
    ("decimal(10,2)", Decimal("-12345678.90"), Decimal("-12345678.90"), pa.decimal128(10, 2)),
    ("decimal(38,0)", Decimal(10**37), Decimal(10**37), pa.decimal128(38, 0)),
    ("decimal(5,-2)", Decimal("12300"), Decimal("12300"), pa.decimal128(7, 0)),
    ("decimal", Decimal("1.234567890123456789012345678901234567890123"), "1.234567890123456789012345678901234567890123", pa.string()),
    ("text", "it's ä 🦀", "it's ä 🦀", pa.string()),
    ("bytes", b"\x00\xff", b"\x00\xff", pa.binary()),
    ("date", dt.date(1, 1, 1), dt.date(1, 1, 1), pa.date32()),
    ("time", dt.time(23, 59, 59, 999999), dt.time(23, 59, 59, 999999), pa.time64("us")),
    ("timetz", dt.time(1, 2, tzinfo=dt.timezone(dt.timedelta(hours=-3))), "01:02:00-03", pa.string()),
    ("timestamp", dt.datetime(1969, 12, 31, 23, 59, 59, 5), dt.datetime(1969, 12, 31, 23, 59, 59, 5), pa.timestamp("us")),
    ("timestamptz", dt.datetime(2024, 2, 29, 12, tzinfo=UTC), dt.datetime(2024, 2, 29, 12, tzinfo=UTC), pa.timestamp("us", "UTC")),
    ("uuid", ONE, ONE, None),
    ("json", Json('{"a":  1.10}'), '{"a":  1.10}', pa.string()),
    ("interval", "1 year 2 mons", "1 year 2 mons", pa.string()),
    ("int32[]", "{1,NULL}", "{1,NULL}", pa.string()),
]

TYPED = Table("typed", [Column(f"c{n}", of) for n, (of, *_) in enumerate(VALUES)], key=["c0"])
ORDERS = Table("orders", [Column("id", "int64"), Column("note", "text")], key=["id"], schema="public")


def built(fill: Any) -> ChangeBatch:
    batch, end = BatchBuilder("p"), Position.after(b"1", b"1")
    batch.begin(b"1", commit_time=dt.datetime(2024, 1, 1, tzinfo=UTC), origin="o", tag="t")
    fill(batch)
    batch.commit(end)
    return batch.finish(end, dt.datetime(2024, 1, 2, tzinfo=UTC))


def table(changes: Any) -> pa.Table:
    return pa.table(changes)


def test_every_type_there_and_back() -> None:
    row: List[Any] = [value for _, value, *_ in VALUES]
    batch = built(lambda b: b.insert_many(TYPED, [row, [1] + [None] * (len(row) - 1)]))
    first, second = batch
    assert first.new_values == tuple(row)
    assert [type(a) for a in first.new_values] == [type(b) for b in row]
    assert second.new_values == (1, *[None] * (len(row) - 1))
    (changes,) = batch.tables()
    got = table(changes)
    for n, (of, _, expected, arrow) in enumerate(VALUES):
        column = got[f"c{n}"]
        if arrow is not None:
            assert column.type == arrow, of
        value = column[0].as_py()
        if of == "uuid" and not isinstance(value, uuid.UUID):
            value = uuid.UUID(bytes=value)
        assert value == expected, of
        assert n == 0 or column[1].as_py() is None
    assert first.new["c19"].loads() == {"a": 1.1}


def test_changes_keep_their_place() -> None:
    def fill(b: BatchBuilder) -> None:
        b.insert(ORDERS, (1, "a"))
        b.insert(TYPED, [1] + [None] * (len(VALUES) - 1))
        b.update(ORDERS, {"id": 1})
        b.update(ORDERS, {"id": 2, "note": "b"}, old={"id": 1})
        b.message("prefix", b"content")
        b.delete(ORDERS, {"id": 2, "note": "b"})
        b.truncate(ORDERS)

    batch = built(fill)
    orders, typed = batch.tables()
    got = table(orders)
    assert got["_op"].to_pylist() == ["insert", "update", "update", "delete"]
    assert got["_index"].to_pylist() == [0, 2, 3, 5]
    assert got["_unchanged"].to_pylist() == [None, ["note"], None, None]
    assert got["id"].to_pylist() == [1, 1, 2, 2] and got["note"].to_pylist() == ["a", None, "b", "b"]
    assert table(orders.old)["id"].to_pylist() == [None, None, 1, 2]
    assert table(typed)["_index"].to_pylist() == [1]
    assert orders.table == ORDERS and len(orders) == 4 and "public.orders" in repr(orders)
    assert pa.schema(orders).names == ["_op", "_index", "_unchanged", "id", "note"]
    assert pa.record_batch(orders).num_rows == 4
    assert pa.RecordBatchReader.from_stream(orders).read_all().num_rows == 4

    insert, _, keep, move, message, delete, truncate = batch.changes
    assert keep.new == {"id": 1, "note": UNCHANGED} and not keep.new["note"] and keep.old is None
    assert move.changes_key and move.key == (1,) and move.old == {"id": 1, "note": UNCHANGED} and move.old_image == "key"
    assert delete.old_image == "full" and delete.new is None and delete.old_texts == ["2", "b"]
    assert message.message == ("prefix", b"content") and message.table is None and truncate.op == "truncate"
    assert (insert.origin, insert.tag, insert.sequence, insert.partition) == ("o", "t", 1, "p")
    assert insert.commit_time == dt.datetime(2024, 1, 1, tzinfo=UTC) and batch.safe_time > insert.commit_time
    assert batch[-1].rank > batch[0].rank and batch[0].rank.startswith(insert.transaction)
    assert batch[-1].rank < batch.end.rank
    with pytest.raises(IndexError):
        batch[7]


@pytest.mark.parametrize(
    ("of", "text"),
    [("date", "infinity"), ("timestamp", "-infinity"), ("time", "24:00:00"), ("decimal(10,2)", "NaN")],
)
def test_what_arrow_cannot_hold_is_told(of: str, text: str) -> None:
    odd = Table("odd", [Column("c", of)], key=["c"])
    (changes,) = built(lambda b: b.insert(odd, [text])).tables()
    with pytest.raises(ValueError, match="the column c .*Arrow"):
        pa.table(changes)


@pytest.mark.parametrize(("of", "text"), [("date", "0044-03-15 BC"), ("date", "infinity"), ("timestamptz", "10000-01-01 00:00:00+00"), ("time", "24:00:00")])
def test_what_python_cannot_hold_is_its_text(of: str, text: str) -> None:
    odd = Table("odd", [Column("c", of)], key=["c"])
    (change,) = built(lambda b: b.insert(odd, [text]))
    assert change.new == {"c": text}


def test_dates_before_the_year_one_are_days_in_arrow() -> None:
    odd = Table("odd", [Column("c", "date")], key=["c"])
    (changes,) = built(lambda b: b.insert(odd, ["0001-12-31 BC"])).tables()
    days = pa.table(changes)["c"].cast(pa.int32()).to_pylist()
    assert days == [dt.date(1, 1, 1).toordinal() - 1 - dt.date(1970, 1, 1).toordinal()]


def test_nothing_is_made_for_each_value() -> None:
    """A million values go to Arrow in less than it takes Python to make as many objects."""
    wide = Table("wide", [Column(f"c{n}", "int64") for n in range(20)], key=["c0"])
    batch = built(lambda b: b.insert_many(wide, ([r * 20 + n for n in range(20)] for r in range(5000))))
    (changes,) = batch.tables()
    import gc
    import sys

    gc.collect()
    before = sys.getallocatedblocks()
    got = pa.table(changes)
    made = sys.getallocatedblocks() - before
    assert got.num_rows == 5000 and got["c19"][4999].as_py() == 99_999
    assert made < 2000, f"{made} objects were made for 100,000 values"


def test_repr_shows_no_value() -> None:
    batch = built(lambda b: b.insert(ORDERS, (1, "private")))
    for shown in (batch, batch[0], *batch.tables(), ORDERS, ORDERS.columns[0]):
        assert "private" not in repr(shown)
    assert anabranch.Table("t", [], key=[]).key == []
