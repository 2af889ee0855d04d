"""What the tests share: a real PostgreSQL, and waiting with a deadline."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any, Callable, Iterator, List

import pytest

#: Longer than anything takes on a loaded machine.
PATIENCE = 60.0

#: What no error and no repr may show.
SECRET = "hunter2-secret"


def until(what: Callable[[], Any], told: str) -> Any:
    """Waits until ``what()`` is true, and gives it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {told}"
        time.sleep(0.05)


class Server:
    """A PostgreSQL of this test run."""

    def __init__(self, process: "subprocess.Popen[str]", told: Any) -> None:
        self._process, self._base, self.port = process, told["url"], told["port"]
        self._slots = 0

    def sql(self, db: str, sql: str) -> List[List[Any]]:
        """Runs statements; the rows as texts."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"db": db, "sql": sql}) + "\n")
        self._process.stdin.flush()
        answer = _answer(self._process)
        assert "error" not in answer, f"{answer['error']}: {sql}"
        return list(answer["rows"])

    def url(self, db: str) -> str:
        return f"{self._base.rpartition('/')[0]}/{db}"


def _answer(process: "subprocess.Popen[str]") -> Any:
    assert process.stdout is not None
    for line in process.stdout:
        # The harness that it runs in writes on the same line.
        if "{" in line:
            return json.loads(line[line.index("{") :])
    raise AssertionError("the server's process ended")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    program = os.environ.get("ANABRANCH_PYTEST_SERVERS")
    if program is None:
        pytest.skip("run by `cargo test -p anabranch-python`, which starts the server")
    command = [program, "--ignored", "--exact", "serve_postgres", "--nocapture"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        told = _answer(process)
        if "skipped" in told:
            pytest.skip(told["skipped"])
        yield Server(process, told)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(PATIENCE)


_count = 0


@pytest.fixture
def shop(server: Server) -> Iterator["Shop"]:
    """A database of this test's own, with orders."""
    global _count
    _count += 1
    shop = Shop(server, f"shop{_count}")
    yield shop
    shop.drop()


class Shop:
    """A database with the table ``orders``."""

    def __init__(self, server: Server, db: str) -> None:
        self.server, self.db, self.slot = server, db, f"slot_{db}"
        self.url = server.url(db)
        server.sql("postgres", f"CREATE DATABASE {db}")
        self.sql(
            "CREATE TABLE orders (id bigint PRIMARY KEY, state text NOT NULL, price numeric(10, 2));"
            "INSERT INTO orders SELECT id, 'new', id * 9.99 FROM generate_series(1, 5) id"
        )

    def sql(self, sql: str) -> List[List[Any]]:
        return self.server.sql(self.db, sql)

    def rows(self) -> List[Any]:
        """The rows, as SQLite has them."""
        rows = self.sql("SELECT id, state, price FROM orders ORDER BY id")
        return [(int(id), state, price) for id, state, price in rows]

    def drop(self) -> None:
        """A slot that nobody reads keeps the server's log."""
        until(
            lambda: not self.server.sql(
                "postgres", f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{self.slot}' AND active"
            ),
            "the slot is let go",
        )
        self.server.sql(
            "postgres",
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{self.slot}'",
        )
