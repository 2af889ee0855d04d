#!/usr/bin/env bash
# Tries a wheel as a user gets it: in a new virtual environment, away from the sources.
#   tests/wheel.sh path/to/anabranch-*.whl        ANABRANCH_PYTHON=python3.9 chooses the interpreter
set -euo pipefail
wheel="$(realpath "$1")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
"${ANABRANCH_PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --no-index "$wheel"
venv/bin/anabranch --version
venv/bin/anabranch --help >/dev/null
venv/bin/python - <<'PYTHON'
import sys
import time
from pathlib import Path

import anabranch
from anabranch import BatchBuilder, Closed, Column, Partition, Pipeline, Position, Reader, Source, Sqlite, Table

assert (Path(anabranch.__file__).parent / "py.typed").exists()
THINGS = Table("things", [Column("id", "int64"), Column("name", "text")], key=["id"])
END = Position.after(b"\0\0\0\1", b"1")


class Things(Source):
    def prepare(self, resume):
        return {"things": "wheel"}

    def tables(self):
        return [THINGS]

    def partitions(self):
        return [Partition("all")]

    def open(self, partition, start):
        return Once()


class Once(Reader):
    done = False

    def next(self):
        if self.done:
            return Closed()
        self.done = True
        batch = BatchBuilder("all")
        batch.begin(b"\0\0\0\1")
        batch.insert_many(THINGS, [(n, f"thing {n}") for n in range(1000)])
        batch.commit(END)
        return batch.finish(END)

    def acknowledge(self, through):
        pass


with Pipeline("wheel").source(Things()).snapshot("never").sink(Sqlite("things.db")).create_tables().start() as running:
    deadline = time.monotonic() + 60
    while running.status().counters.changes < 1000 or running.status().lag_changes:
        assert time.monotonic() < deadline, running.status()
        time.sleep(0.05)

import sqlite3

with sqlite3.connect("things.db") as db:
    assert db.execute("SELECT count(*), max(id) FROM things").fetchone() == (1000, 999)
for kind, main in (("postgres", "url"), ("mysql", "url"), ("dynamodb", "region"), ("spanner", "database")):
    try:
        Pipeline("p").source("postgresql://h/d").sink({"type": kind, "nonsense": 1}).build()
    except anabranch.ConfigError as error:
        assert "no \"" not in str(error), f"the wheel is without {kind}"
print(f"the wheel works in Python {sys.version.split()[0]}")
PYTHON
