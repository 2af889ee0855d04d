"""Progress, for people: a bar on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Optional, Protocol, TextIO

from .results import Status

if TYPE_CHECKING:
    from .pipeline import Running

#: Seconds between two looks, and between two lines where nothing can be drawn over.
LOOK, LINES = 0.2, 10.0
_WIDTH = 30


def words(status: Status) -> str:
    """How far it is, in one line."""
    parts = [status.pipeline, status.phase]
    copy = status.snapshot
    if copy is not None and not copy.done:
        parts.append(f"{copy.tables_done} of {copy.tables} tables, {copy.rows:,} rows copied")
    else:
        parts.append(f"{status.counters.snapshot_rows:,} rows copied")
        parts.append(f"{status.counters.changes:,} changes")
    if status.lag_seconds is not None:
        parts.append(f"lag {status.lag_seconds:.1f} s")
    if status.dead_letters_open:
        parts.append(f"{status.dead_letters_open:,} dead letters")
    if status.phase == "retrying" and status.last_error:
        parts.append(status.last_error)
    return ", ".join(parts)


def fraction(status: Status) -> Optional[float]:
    """How much of the tables is copied; ``None`` where there is no end to measure by."""
    copy = status.snapshot
    if copy is None or copy.done or not copy.chunks:
        return None
    return float(copy.chunks_done) / float(copy.chunks)


class _Screen(Protocol):
    every: float

    def show(self, status: Status) -> None: ...

    def close(self, status: Status) -> None: ...


class _Terminal:
    every = LOOK

    def __init__(self, out: TextIO) -> None:
        self._out, self._last = out, ""

    def show(self, status: Status) -> None:
        done = fraction(status)
        bar = ""
        if done is not None:
            full = round(done * _WIDTH)
            bar = f"[{'#' * full}{'.' * (_WIDTH - full)}] {done:4.0%} "
        line = bar + words(status)
        if line != self._last:
            self._last = line
            # Over the last line, and clear what is left of it.
            self._out.write(f"\r{line}\x1b[K")
            self._out.flush()

    def close(self, status: Status) -> None:
        self.show(status)
        self._out.write("\n")
        self._out.flush()


class _Lines:
    every = LINES

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, status: Status) -> None:
        self._out.write(words(status) + "\n")
        self._out.flush()

    def close(self, status: Status) -> None:
        self.show(status)


class _Notebook:
    every = LOOK * 2

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def show(self, status: Status) -> None:
        self._handle.update(_Shown(status))

    def close(self, status: Status) -> None:
        self.show(status)


class _Shown:
    """What a notebook draws, and what it falls back to."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def __repr__(self) -> str:
        return words(self._status)

    def _repr_html_(self) -> str:
        done = fraction(self._status)
        bar = "" if done is None else f"<progress max='1' value='{done:.3f}' style='width:100%'></progress>"
        return bar + self._status._repr_html_()


class _Tqdm:
    every = LOOK

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def show(self, status: Status) -> None:
        copy = status.snapshot
        if copy is not None and copy.chunks:
            self._bar.total, self._bar.n = copy.chunks, copy.chunks_done
        self._bar.set_description_str(words(status))
        self._bar.refresh()

    def close(self, status: Status) -> None:
        self.show(status)
        self._bar.close()


def _notebook() -> Optional[_Screen]:
    """A place in the notebook that runs this, if one does."""
    if "ipykernel" not in sys.modules:
        return None
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return None
    if get_ipython() is None:
        return None
    return _Notebook(display("...", display_id=True))


def _terminal(out: TextIO) -> _Screen:
    try:
        from tqdm import tqdm
    except ImportError:
        return _Terminal(out)
    return _Tqdm(tqdm(file=out, unit=" chunks", bar_format="{desc} |{bar:20}| {n_fmt}/{total_fmt}", leave=True))


def _screen(show: Optional[bool], out: TextIO) -> Optional[_Screen]:
    if show is False:
        return None
    notebook = _notebook()
    if notebook is not None:
        return notebook
    if out.isatty():
        return _terminal(out)
    return _Lines(out) if show else None


class Progress:
    """Shows how far a pipeline is while the ``with`` lasts.

    ``show``: ``True`` also where nothing can be drawn over (a line every ten seconds), ``False`` nowhere; by default
    on a terminal and in a notebook."""

    def __init__(self, running: "Running", *, show: Optional[bool] = None, out: Optional[TextIO] = None) -> None:
        self._running, self._show, self._out = running, show, out or sys.stderr
        self._screen: Optional[_Screen] = None
        self._end = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def __enter__(self) -> "Progress":
        self._screen = _screen(self._show, self._out)
        if self._screen is not None:
            self._thread = threading.Thread(target=self._draw, name="anabranch-progress", daemon=True)
            self._thread.start()
        return self

    def _draw(self) -> None:
        screen = self._screen
        assert screen is not None
        shown = 0.0
        while not self._end.is_set():
            if time.monotonic() - shown >= screen.every:
                screen.show(self._running.status())
                shown = time.monotonic()
            self._end.wait(LOOK)

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        if self._screen is not None:
            self._screen.close(self._running.status())
