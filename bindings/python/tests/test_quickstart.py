"""The first things that a user does, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import anabranch
import pytest
from anabranch import Pipeline, Postgres, Sqlite
from conftest import PATIENCE, Shop

README = Path(__file__).parent.parent / "README.md"


def rows(path: Path) -> list:
    with sqlite3.connect(path) as file:
        return file.execute("SELECT id, state, price FROM orders ORDER BY id").fetchall()


def pipeline(shop: Shop, path: Path) -> Pipeline:
    return (
        Pipeline("orders-dr")
        .source(Postgres(shop.url, publication="orders", slot=shop.slot))
        .sink(Sqlite(path))
        .order(anabranch.ByTransaction())
        .create_tables()
    )


def script(shop: Shop, path: Path) -> str:
    """The script of the README, on this server."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    found = [b for b in blocks if "running.drain()" in b and "postgresql://" in b]
    assert found, "the README has no script"
    text = found[0]
    assert len(text.strip().splitlines()) <= 12, "it is no ten-line script any more"
    for old, new in [
        ("postgresql://replicator@db1/shop", shop.url),
        ('slot="orders_dr"', f'slot="{shop.slot}"'),
        ('"orders.db"', repr(str(path))),
    ]:
        assert old in text, f"the README's script has no {old}"
        text = text.replace(old, new)
    return text


def test_the_script_of_the_readme(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    ran = subprocess.run(
        [sys.executable, "-c", script(shop, path)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "True" in ran.stdout
    assert rows(path) == shop.rows()


def test_the_same_in_a_notebook(shop: Shop, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    path = tmp_path / "orders.db"
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(script(shop, path)),
        nbformat.v4.new_code_cell(
            "with pipeline.start() as running:\n"
            "    with running.progress():\n"
            "        running.drain()\n"
            "    status = running.status()\n"
            "status"
        ),
        nbformat.v4.new_code_cell("async with await pipeline.start_async() as running:\n    print(await running.drain_async())"),
    ]
    NotebookClient(notebook, timeout=int(PATIENCE), kernel_name="python3").execute()
    assert rows(path) == shop.rows()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    html = [o.data["text/html"] for o in outputs if "data" in o and "text/html" in o.data]
    assert any("<table>" in text and "rows copied" in text for text in html), "a status is a table"
    assert "Drained True" in notebook.cells[2].outputs[0]["text"]


def test_a_pipeline_goes_on_where_it_stopped(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    made = pipeline(shop, path)
    assert made.status() is None
    report = made.check()
    assert report and "numeric(10,2)" in str(report) and report.source_statements
    with made.start() as running:
        assert running.drain(PATIENCE)
        shop.sql("UPDATE orders SET state = 'paid' WHERE id <= 2; DELETE FROM orders WHERE id = 3")
        drained = running.drain(PATIENCE)
        assert drained.drained and drained.marker_reached and drained.dead_letters_open == 0
        assert rows(path) == shop.rows()
        status = running.status()
        assert status.phase == "streaming" and status.counters.snapshot_rows == 5 and status.counters.changes == 3
        assert status.safe_time.tzinfo is not None
    assert running.ended and running.status().phase == "stopped"

    shop.sql("INSERT INTO orders VALUES (9, 'late', 1.50)")
    status = made.run(until_drained=True)
    assert status.counters.changes == 4
    assert rows(path) == shop.rows()
    stored = made.status()
    assert stored is not None and stored.phase == "stopped" and stored.pipeline == "orders-dr"
    verified = made.verify(wait=None)
    assert verified and verified.tables[0].source_rows == 5
    assert made.letters.count() == 0 and made.letters.list() == []
    assert made.pause() is True and made.pause() is False and made.resume() is True


def test_asyncio(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    made = pipeline(shop, path)

    async def replicate() -> None:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        beating = asyncio.create_task(beat())
        assert await made.check_async()
        async with await made.start_async() as running:
            assert await running.drain_async(PATIENCE)
            # Cancelling gives the waiting up, and nothing else.
            waiting = asyncio.create_task(running.wait_async())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            shop.sql("INSERT INTO orders VALUES (7, 'later', NULL)")
            assert await running.drain_async(PATIENCE)
            # A call that would stop this loop says so.
            with pytest.raises(anabranch.ConfigError, match="_async"):
                running.drain()
        assert (await made.status_async()).phase == "stopped"
        assert await made.verify_async(wait=None)
        beating.cancel()
        assert beats > 10, "the loop went on meanwhile"

    asyncio.run(replicate())
    assert rows(path) == shop.rows()


def test_the_command(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    file = tmp_path / "orders.toml"
    file.write_text(
        f"[pipeline]\nname = 'orders-dr'\n[source]\ntype = 'postgres'\nurl = '{shop.url}'\npublication = 'orders'\n"
        f"slot = '{shop.slot}'\n[sink]\ntype = 'sqlite'\npath = '{path}'\ncreate_tables = true\n"
    )

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "anabranch", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)

    assert "replicat" in run("--help").stdout.lower() or "Carries" in run("--help").stdout
    assert run("run", str(file), "--until-drained").returncode == 0
    assert rows(path) == shop.rows()
    # The wheel reads the same file.
    made = Pipeline.from_config(file)
    assert made.status().counters.snapshot_rows == 5
    assert Pipeline.from_config(file.read_text()).name == "orders-dr"
    bad = run("check", str(tmp_path / "nothing.toml"))
    assert bad.returncode == 2 and "nothing.toml" in bad.stderr
