"""Ctrl-C, threads, forks and the end of the program."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from anabranch import Memory, Pipeline, Progress, Sqlite
from connectors_in_python import Log, LogSource
from conftest import PATIENCE

HERE = Path(__file__).parent


def program(body: str, tmp_path: Path) -> "subprocess.Popen[str]":
    head = f"""
        import sys, time, threading, os, asyncio
        sys.path.insert(0, {str(HERE)!r})
        from anabranch import Pipeline, Sqlite, Memory
        from connectors_in_python import Log, LogSource
        log = Log()
        log.commit([("insert", 1, "one")])
        made = Pipeline("p").source(LogSource(log)).sink(Sqlite({str(tmp_path / "x.db")!r})).create_tables()
    """
    text = textwrap.dedent(head) + textwrap.dedent(body)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", text], **pipes)  # type: ignore[call-overload]


def interrupted(body: str, tmp_path: Path) -> "tuple[float, str, str, int]":
    process = program(body, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n", process.stderr.read() if process.stderr else ""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    return time.monotonic() - began, out, err, process.returncode


@pytest.mark.parametrize("call", ["running.wait()", "made.source(Silent(log)).name and running.drain()"])
def test_ctrl_c_ends_a_wait_at_once(call: str, tmp_path: Path) -> None:
    body = f"""
        class Silent(LogSource):
            pass
        with made.start() as running:
            running.drain()
            if "drain" in {call!r}:
                # What can never be reached: the reader is told of no more transactions.
                log.transactions.append([("insert", 2, "two")])
                LogSource.mark = lambda self: {{"all": __import__("connectors_in_python").after(10**6)}}
            threading.Timer(0.2, lambda: print("waiting", flush=True)).start()
            try:
                {call}
            except KeyboardInterrupt:
                print("interrupted", running.ended, flush=True)
        print("stopped", running.status().phase, flush=True)
    """
    took, out, err, code = interrupted(body, tmp_path)
    assert out.splitlines() == ["interrupted False", "stopped stopped"], (out, err)
    assert code == 0 and took < PATIENCE / 2


def test_ctrl_c_ends_asyncio(tmp_path: Path) -> None:
    body = """
        async def main():
            async with await made.start_async() as running:
                await running.drain_async()
                print("waiting", flush=True)
                await running.wait_async()
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    _, out, err, code = interrupted(body, tmp_path)
    assert out == "interrupted\n" and code == 0, err


def test_run_ends_in_good_order(tmp_path: Path) -> None:
    body = """
        threading.Timer(1.0, lambda: print("waiting", flush=True)).start()
        status = made.run()
        print(status.phase, flush=True)
    """
    _, out, err, code = interrupted(body, tmp_path)
    assert out == "stopped\n" and code == 0, err


def test_the_end_of_the_program_stops_what_runs(tmp_path: Path) -> None:
    process = program("running = made.start()\nassert running.drain()\nprint('left')\n", tmp_path)
    out, err = process.communicate(timeout=PATIENCE)
    assert (out, process.returncode) == ("left\n", 0), err
    assert "Traceback" not in err and "panicked" not in err
    stored = Pipeline("p").source(LogSource(Log())).sink(Sqlite(tmp_path / "x.db")).status()
    assert stored is not None and stored.phase == "stopped"


def test_the_end_of_the_program_waits_for_calls_of_other_threads(tmp_path: Path) -> None:
    body = """
        class Slow:
            def __del__(self, sleep=time.sleep):
                sleep(1)

        inside = threading.Event()

        def done(value, error):
            inside.set()
            # Back while the interpreter would be taking itself apart, which Slow drags out.
            time.sleep(0.4)
            print("left", flush=True)

        slow = Slow()
        with made.start() as running:
            running._native.drain(None).start(done)
            assert inside.wait()
    """
    process = program(body, tmp_path)
    out, err = process.communicate(timeout=PATIENCE)
    assert (out, process.returncode) == ("left\n", 0), err


@pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
def test_a_forked_child_is_told_that_it_cannot(tmp_path: Path) -> None:
    body = """
        with made.start() as running:
            running.drain()
        if os.fork() == 0:
            try:
                made.start()
            except Exception as error:
                print(type(error).__name__, error, flush=True)
            os._exit(7)
        _, status = os.wait()
        print(os.waitstatus_to_exitcode(status))
    """
    process = program(body, tmp_path)
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert out.startswith("ConfigError process: ") and "spawn" in out and out.endswith("\n7\n"), (out, err)


def test_other_threads_go_on_while_one_waits(tmp_path: Path) -> None:
    log = Log()
    log.commit([("insert", 1, "one")])
    made = Pipeline("p").source(LogSource(log)).sink(Sqlite(tmp_path / "x.db")).create_tables()
    with made.start() as running:
        waited = threading.Thread(target=running.wait)
        waited.start()
        # A drain is answered while another thread waits for the end.
        assert running.drain(PATIENCE)
        assert waited.is_alive()
        running.stop()
        waited.join(PATIENCE)
        assert not waited.is_alive()


def test_progress_in_plain_lines_and_on_a_terminal(tmp_path: Path) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    log = Log()
    log.commit([("insert", n, "x") for n in range(5)])
    made = Pipeline("p").source(LogSource(log)).sink(Sqlite(tmp_path / "x.db")).checkpointer(Memory())
    plain, terminal, silent = io.StringIO(), Terminal(), io.StringIO()
    with made.create_tables().start() as running:
        with Progress(running, show=True, out=plain), Progress(running, out=terminal), Progress(running, out=silent):
            assert running.drain(PATIENCE)
        assert "5 rows copied" in repr(running) and "<table>" in running._repr_html_()
    assert "5 rows copied" in plain.getvalue() and "\r" not in plain.getvalue()
    assert "5 rows copied" in terminal.getvalue() and silent.getvalue() == ""


def test_progress_draws_a_bar_without_tqdm() -> None:
    import io

    from anabranch.progress import _Terminal
    from anabranch.results import Status

    counters = {"snapshot_rows": 10, "changes": 0}
    told = {"pipeline": "p", "phase": "snapshot", "counters": counters, "lag_seconds": None, "dead_letters_open": 0}
    told["snapshot"] = {"tables": 2, "tables_done": 1, "chunks": 4, "chunks_done": 1, "rows": 10, "done": False}
    out = io.StringIO()
    screen = _Terminal(out)
    screen.show(Status(told))
    screen.close(Status(told))
    assert "] " in out.getvalue() and " 25%" in out.getvalue() and "1 of 2 tables" in out.getvalue()
