"""Coroutines: those that wait for an operation, and those of connectors."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Awaitable, Callable, Optional

from ._anabranch import Operation

_lock = threading.Lock()
_loop: Optional[asyncio.AbstractEventLoop] = None


def _own_loop() -> asyncio.AbstractEventLoop:
    """A loop in a thread of its own, for the connectors of pipelines that were started without one."""
    global _loop
    with _lock:
        if _loop is None or _loop.is_closed():
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="anabranch-asyncio", daemon=True).start()
        return _loop


def run(loop: Optional[asyncio.AbstractEventLoop], awaitable: Awaitable[Any], done: Callable[..., None]) -> None:
    """Awaits it in ``loop``, from another thread, and calls ``done(value, error)``."""

    async def wrapped() -> None:
        try:
            value = await awaitable
        except BaseException as error:  # noqa: BLE001: it is handed on
            done(None, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
        else:
            done(value)

    coroutine = wrapped()
    try:
        asyncio.run_coroutine_threadsafe(coroutine, loop or _own_loop())
    except RuntimeError as error:
        coroutine.close()
        done(None, ConnectionError(f"the event loop is closed: {error}"))


def _settle(future: "asyncio.Future[Any]", value: Any, error: Optional[BaseException]) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


async def result(operation: Operation) -> Any:
    """What an operation gives. Cancelling the task gives it up."""
    loop = asyncio.get_running_loop()
    future: "asyncio.Future[Any]" = loop.create_future()

    def done(value: Any, error: Optional[BaseException]) -> None:
        loop.call_soon_threadsafe(_settle, future, value, error)

    operation.start(done)
    try:
        return await future
    except asyncio.CancelledError:
        operation.abort()
        raise
