"""Dead letters: changes that were not applied."""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Iterator, List, Optional, Sequence

from . import _aio
from ._anabranch import Operation
from .results import DeadLetter

#: Letters that somebody, or a retry, still has to deal with.
OPEN = ("open", "held")
_PAGE = 500


class DeadLetters:
    """The dead letters of a pipeline. Marks are obeyed by whichever process runs it."""

    def __init__(self, native: "Callable[..., Any]") -> None:
        self._native = native

    def count(self) -> int:
        """How many are open or held."""
        return int(self._native().count_letters().wait())

    async def count_async(self) -> int:
        """As :meth:`count`."""
        return int(await _aio.result(self._native(asyncio.get_running_loop()).count_letters()))

    def list(
        self, states: Sequence[str] = OPEN, *, after: Optional[str] = None, limit: int = 100
    ) -> "List[DeadLetter]":
        """Those in these states (``open``, ``held``, ``applied``, ``skipped``), by their ids, from ``after`` on."""
        return [DeadLetter(x) for x in self._native().list_letters(list(states), after, limit).wait()]

    async def list_async(
        self, states: Sequence[str] = OPEN, *, after: Optional[str] = None, limit: int = 100
    ) -> "List[DeadLetter]":
        """As :meth:`list`."""
        operation: Operation = self._native(asyncio.get_running_loop()).list_letters(list(states), after, limit)
        return [DeadLetter(x) for x in await _aio.result(operation)]

    def __iter__(self) -> Iterator[DeadLetter]:
        """Those that are open or held, page by page."""
        after: Optional[str] = None
        while True:
            page = self.list(after=after, limit=_PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1].id

    def get(self, id: str) -> Optional[DeadLetter]:
        """One of them, with its row."""
        told = self._native().get_letter(id).wait()
        return None if told is None else DeadLetter(told)

    async def get_async(self, id: str) -> Optional[DeadLetter]:
        """As :meth:`get`."""
        told = await _aio.result(self._native(asyncio.get_running_loop()).get_letter(id))
        return None if told is None else DeadLetter(told)

    def retry(self, *ids: str) -> int:
        """Has these tried again, also if they were given up. How many they are."""
        return int(self._native().mark_letters(list(ids), True).wait())

    async def retry_async(self, *ids: str) -> int:
        """As :meth:`retry`."""
        return int(await _aio.result(self._native(asyncio.get_running_loop()).mark_letters(list(ids), True)))

    def skip(self, *ids: str) -> int:
        """Leaves these out for good: their changes will be missing in the target. How many they are."""
        return int(self._native().mark_letters(list(ids), False).wait())

    async def skip_async(self, *ids: str) -> int:
        """As :meth:`skip`."""
        return int(await _aio.result(self._native(asyncio.get_running_loop()).mark_letters(list(ids), False)))
