"""The builder of pipelines, and pipelines that run."""

from __future__ import annotations

import asyncio
import atexit
import datetime as _dt
import os
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Type, Union

from . import _aio
from ._anabranch import Operation, build as _build, parse_toml as _parse_toml, stop_all as _stop_all
from ._anabranch import Pipeline as _Native, Running as _NativeRunning
from ._errors import ConfigError
from .connectors import Connector, hidden, of_url
from .letters import DeadLetters
from .order import Order
from .progress import Progress
from .results import Drained, Health, Preflight, Status, Verified

Seconds = Union[int, float, _dt.timedelta]
#: A connector, its dict with a ``type``, its URL, or an object of a class of one's own.
Given = Any


def _seconds(value: Optional[Seconds]) -> Optional[float]:
    return value.total_seconds() if isinstance(value, _dt.timedelta) else value


class Pipeline:
    """A pipeline that is configured and not started. Setters give a new one, and never fail: every error of
    the configuration is found by :meth:`build`, or by the first call that needs it.

    ::

        with (
            Pipeline("orders-dr")
            .source(Postgres("postgresql://replicator@db1/shop", publication="orders", slot="orders_dr"))
            .sink(Sqlite("orders.db"))
            .create_tables()
            .start()
        ) as running:
            running.drain()
    """

    def __init__(self, name: str) -> None:
        self._config: Dict[str, Dict[str, Any]] = {"pipeline": {"name": name}}
        self._transforms: List[Any] = []
        self._objects: Dict[str, Any] = {}

    @classmethod
    def builder(cls, name: str) -> "Pipeline":
        """As ``Pipeline(name)``: what Rust calls it."""
        return cls(name)

    @classmethod
    def from_config(cls, config: "str | os.PathLike[str] | Mapping[str, Any]") -> "Pipeline":
        """The pipeline of a configuration: a file, a dict of the same form, or the TOML text itself. In a dict,
        connectors may be objects."""
        if not isinstance(config, Mapping):
            config = _parse_toml(_text(config))
        made = cls("")
        sections = dict(config)
        transforms = sections.pop("transform", None) or []
        for name, section in sections.items():
            if name in ("source", "sink", "checkpoint"):
                made = made._with_connector(name, section)
            elif not isinstance(section, Mapping):
                raise ConfigError(f"{name}: must be a table, not {type(section).__name__}")
            else:
                made = made._with(name, **section)
        if isinstance(transforms, (Mapping, str)) or not isinstance(transforms, Iterable):
            raise ConfigError("transform: must be a list of tables")
        for transform in transforms:
            made = made.transform(transform)
        return made

    # What it is made of.

    def _copy(self) -> "Pipeline":
        new = object.__new__(type(self))
        new._config = {name: dict(section) for name, section in self._config.items()}
        new._transforms, new._objects = list(self._transforms), dict(self._objects)
        return new

    def _with(self, section: str, /, **keys: Any) -> "Pipeline":
        new = self._copy()
        into = new._config.setdefault(section, {})
        into.update(keys)
        return new

    def _with_connector(self, section: str, given: Given, keep: Sequence[str] = ()) -> "Pipeline":
        """A connector in a section; keys of the pipeline itself that stand there already stay."""
        new = self._copy()
        before = new._config.pop(section, {})
        new._objects.pop(section, None)
        kept = {key: before[key] for key in keep if key in before}
        keys = _keys(given)
        if keys is None:
            new._objects[section] = given
            keys = {"type": "python"}
        new._config[section] = {**kept, **keys}
        return new

    def source(self, source: Given) -> "Pipeline":
        """Where changes come from. Required."""
        return self._with_connector("source", source, keep=("snapshot",))

    def sink(self, sink: Given) -> "Pipeline":
        """Where changes go. Required."""
        return self._with_connector("sink", sink, keep=("create_tables",))

    def order(self, order: Order) -> "Pipeline":
        """How changes are ordered: ``ByTransaction()`` (the default), ``ByKey(lanes)``, ``ByWindow(length)``,
        ``Arrival()``, or their words in a configuration file."""
        keys = {"order": order} if isinstance(order, str) else order._keys()
        return self._with("pipeline", **{"lanes": None, "window_seconds": None, **keys})

    def lanes(self, lanes: int) -> "Pipeline":
        """How many lanes write at a time, in the orders ``key`` and ``window``."""
        return self._with("pipeline", lanes=lanes)

    def checkpointer(self, checkpointer: Given) -> "Pipeline":
        """Where the checkpoint is kept. Default: in the sink, where it can."""
        return self._with_connector("checkpoint", checkpointer)

    def dead_letters(self, store: Given) -> "Pipeline":
        """Where dead letters are kept. Default: in the sink, where it can. See :attr:`letters` for what is there."""
        keys = _keys(store)
        if keys is None:
            raise ConfigError("dead_letters: must be a connector, a dict with a type, or a URL")
        new = self._copy()
        before = new._config.get("dead_letters", {})
        policy = {k: v for k, v in before.items() if k in _LETTER_POLICY}
        new._config["dead_letters"] = {**policy, **keys}
        return new

    def on_rejected(self, policy: str) -> "Pipeline":
        """What happens to a row that the target refuses: ``stop`` (the default), ``dead_letter`` or ``halt_shard``."""
        return self._with("dead_letters", on_rejected=policy)

    def max_attempts(self, attempts: int) -> "Pipeline":
        """How often a dead letter is tried again by itself; then it is severe. Default 500."""
        return self._with("dead_letters", max_attempts=attempts)

    def retry_letters_after(self, wait: Seconds) -> "Pipeline":
        """How long a dead letter waits between two tries. Default, and least: 10 seconds."""
        seconds = _seconds(wait)
        return self._with("dead_letters", retry_minutes=None if seconds is None else seconds / 60)

    def classes(self, rules: Sequence[Mapping[str, str]]) -> "Pipeline":
        """Which refusals may mend themselves: dicts with ``matches``, a part of the reason, and ``class``."""
        return self._with("dead_letters", classes=[dict(rule) for rule in rules])

    def keep_left_out(self, filtered: bool, skipped: bool) -> "Pipeline":
        """Whether changes that transforms left out are kept as closed letters. Default: both."""
        keep = [name for name, kept in (("filtered", filtered), ("skip", skipped)) if kept]
        return self._with("dead_letters", keep=keep)

    def mode(self, mode: str) -> "Pipeline":
        """What the run does: ``regular`` (the default), ``retry_dlq`` or ``retry_all_dlq``.

        With :meth:`each_shard` also which shards it takes: ``resume_success``, ``resume_failed``, ``reprocess``
        or ``resume_all``.
        """
        return self._with("pipeline", mode=mode)

    def each_shard(self, each: bool = True) -> "Pipeline":
        """Writes each shard of a run of window files by a pipeline of its own, which halts alone. Default: no."""
        return self._with("pipeline", each_shard=each)

    def accept_lossy(self, *columns: str) -> "Pipeline":
        """Which lossy columns are accepted: ``table.column``, ``schema.table.column`` or ``type:numeric``."""
        known = self._config.get("mapping", {}).get("lossy", [])
        return self._with("mapping", lossy=[*known, *columns])

    def create_tables(self, create: bool = True) -> "Pipeline":
        """Creates missing target tables from the source's schema. Default: no."""
        return self._with("sink", create_tables=create)

    def snapshot(self, mode: str) -> "Pipeline":
        """Whether tables are copied first: ``initial`` (the default), ``never`` or ``only``."""
        return self._with("source", snapshot=mode)

    def snapshot_workers(self, workers: int) -> "Pipeline":
        """How many chunks are copied at a time. Default 4."""
        return self._with("pipeline", snapshot_workers=workers)

    def memory(self, *, mib: int) -> "Pipeline":
        """The byte budget of changes in memory, in MiB. Default 32."""
        return self._with("pipeline", memory_mib=mib)

    def retry(self, attempts: Optional[int]) -> "Pipeline":
        """How many retries in a row without progress are made before giving up. Default: no limit."""
        return self._with("pipeline", retries=attempts)

    def stop_deadline(self, deadline: Seconds) -> "Pipeline":
        """How long stopping may take, in whole seconds, before what is under way is dropped. Default 30."""
        seconds = _seconds(deadline)
        whole = isinstance(seconds, float) and seconds.is_integer()
        return self._with("pipeline", stop_seconds=int(seconds) if whole and seconds is not None else seconds)

    def transform(self, transform: Given) -> "Pipeline":
        """Adds a transform: a dict of its configuration (``{"type": "filter", ...}``), an object with ``apply`` or
        ``shards``, or a function from batch to batch. They run in the order in which they were added."""
        new = self._copy()
        new._transforms.append(dict(transform) if isinstance(transform, Mapping) else transform)
        return new

    def workers(
        self,
        *,
        id: Optional[str] = None,
        failover: Optional[Seconds] = None,
        most_partitions: Optional[int] = None,
        leases: Optional[Mapping[str, Any]] = None,
    ) -> "Pipeline":
        """Shares the partitions of the source with other processes that run the same pipeline."""
        keys = {"id": id, "failover_seconds": _seconds(failover), "most_partitions": most_partitions, "leases": leases}
        return self._with("workers", **keys)

    def set(self, section: str, /, **keys: Any) -> "Pipeline":
        """Sets keys of a section of the configuration, as a file has them: for what has no setter."""
        return self._with(section, **keys)

    # What is made of it.

    @property
    def name(self) -> str:
        """Its name: the key of its progress."""
        return str(self._config["pipeline"].get("name"))

    @property
    def config(self) -> Dict[str, Any]:
        """The configuration, as a file has it. It may hold secrets."""
        transforms = [t for t in self._transforms if isinstance(t, Mapping)]
        config: Dict[str, Any] = {name: dict(section) for name, section in self._config.items()}
        return {**config, "transform": transforms} if transforms else config

    def _native(self, loop: "Optional[asyncio.AbstractEventLoop]" = None) -> _Native:
        for section, setter in (("source", "source"), ("sink", "sink")):
            if "type" not in self._config.get(section, {}):
                # A section may be there for a key of the pipeline alone.
                keys = self._config.get(section, {})
                known = {"snapshot", "create_tables"}
                if not set(keys) - known:
                    raise ConfigError(f"{section}: is missing (call .{setter}(..))")
        config: Dict[str, Any] = {name: dict(section) for name, section in self._config.items()}
        custom = [t for t in self._transforms if not isinstance(t, Mapping)]
        places = {id(t): at for at, t in enumerate(custom)}
        config["transform"] = [
            t if isinstance(t, Mapping) else {"type": f"python:{places[id(t)]}"} for t in self._transforms
        ]
        return _build(config, {**self._objects, "transforms": custom}, loop)

    def build(self) -> "Pipeline":
        """Finds every error of the configuration, without a connection, and gives the pipeline itself."""
        self._native()
        return self

    def start(self) -> "Running":
        """Takes the pipeline over, checks both databases and starts it. A database that is down is waited for in the
        background; everything that waiting cannot mend is an error here."""
        return Running(self._native().start().wait(), None)

    async def start_async(self) -> "Running":
        """As :meth:`start`. Asynchronous connectors run in the loop that this is awaited in."""
        loop = asyncio.get_running_loop()
        return Running(await _aio.result(self._native(loop).start()), loop)

    def run(self, *, until_drained: bool = False, progress: "bool | None" = None) -> Status:
        """Runs until it ends by itself, or until Ctrl-C, or (``until_drained``) until everything committed before
        now is in the target; then stops in good order. ``progress`` shows a bar; by default on a terminal and in a
        notebook."""
        with self.start() as running:
            with Progress(running, show=progress):
                if until_drained:
                    running.drain()
                else:
                    try:
                        running.wait()
                    except KeyboardInterrupt:
                        pass
            running.stop()
            return running.status()

    def check(self) -> Preflight:
        """Connects to both sides and compares them, without changing anything on either."""
        return Preflight(self._native().check().wait())

    async def check_async(self) -> Preflight:
        """As :meth:`check`."""
        return Preflight(await _aio.result(self._native(asyncio.get_running_loop()).check()))

    def status(self) -> Optional[Status]:
        """What the stores tell of it, wherever it runs. ``None`` if it never ran."""
        return _status(self._native().stored_status().wait())

    async def status_async(self) -> Optional[Status]:
        """As :meth:`status`."""
        return _status(await _aio.result(self._native(asyncio.get_running_loop()).stored_status()))

    stored_status = status

    def pause(self) -> bool:
        """Marks it as paused, wherever it runs, until :meth:`resume`. False if it was paused already."""
        return bool(self._native().set_paused(True).wait())

    async def pause_async(self) -> bool:
        """As :meth:`pause`."""
        return bool(await _aio.result(self._native(asyncio.get_running_loop()).set_paused(True)))

    def resume(self) -> bool:
        """Lets it go on. False if it was not paused."""
        return bool(self._native().set_paused(False).wait())

    async def resume_async(self) -> bool:
        """As :meth:`resume`."""
        return bool(await _aio.result(self._native(asyncio.get_running_loop()).set_paused(False)))

    def reprocess(self, *shards: str) -> None:
        """Marks shards for a run of the mode ``reprocess``, where each has a pipeline of its own."""
        self._native().reprocess(shards).wait()

    async def reprocess_async(self, *shards: str) -> None:
        """As :meth:`reprocess`."""
        await _aio.result(self._native(asyncio.get_running_loop()).reprocess(shards))

    def drain(self, timeout: Optional[Seconds] = None) -> Drained:
        """Waits until everything committed before now is in the target, while another process runs it."""
        return Drained(self._native().drain(_seconds(timeout)).wait())

    async def drain_async(self, timeout: Optional[Seconds] = None) -> Drained:
        """As :meth:`drain`."""
        return Drained(await _aio.result(self._native(asyncio.get_running_loop()).drain(_seconds(timeout))))

    def verify(self, tables: Sequence[str] = (), **options: Any) -> Verified:
        """Compares the rows of both sides, also while it runs.

        ``tables``: only these. ``skip``: not these. ``wait``: how long to wait for the target while rows differ (60 s;
        ``None`` for databases at rest). ``rounds``, ``rate`` (rows a second of each side), ``list`` (differences
        listed of each table), ``repair`` (put the source's rows there), ``on_table`` (called with each table when it
        is done)."""
        return Verified(self._verify(tables, None, options).wait())

    async def verify_async(self, tables: Sequence[str] = (), **options: Any) -> Verified:
        """As :meth:`verify`."""
        return Verified(await _aio.result(self._verify(tables, asyncio.get_running_loop(), options)))

    def _verify(
        self, tables: Sequence[str], loop: "Optional[asyncio.AbstractEventLoop]", options: Dict[str, Any]
    ) -> Operation:
        known = {"skip", "wait", "rounds", "rate", "list", "repair", "on_table"}
        for name in options:
            if name not in known:
                raise TypeError(f"verify() has no argument {name} (known: tables, {', '.join(sorted(known))})")
        if isinstance(tables, str):
            raise TypeError("tables must be a list of names")
        return self._native(loop).verify(
            tables=list(tables),
            skip=list(options.get("skip", ())),
            wait=_seconds(options.get("wait", 60.0)),
            rounds=options.get("rounds"),
            rate=options.get("rate"),
            list=options.get("list"),
            repair=bool(options.get("repair", False)),
            tell=options.get("on_table"),
        )

    @property
    def letters(self) -> DeadLetters:
        """Its dead letters: to look at, to try again, to skip."""
        return DeadLetters(self._native)

    def __repr__(self) -> str:
        def section(name: str) -> str:
            if name in self._objects:
                return repr(type(self._objects[name]).__name__)
            return f"({hidden(self._config.get(name, {}))})"

        order = self._config["pipeline"].get("order", "transaction")
        return f"<Pipeline {self.name!r} source={section('source')} sink={section('sink')} order={order}>"


_LETTER_POLICY = {"on_rejected", "max_attempts", "retry_minutes", "classes", "keep"}


def _status(told: Any) -> Optional[Status]:
    return None if told is None else Status(told)


def _text(config: "str | os.PathLike[str]") -> str:
    """The TOML text of a file, or the text itself: it has several lines, a path has one."""
    if isinstance(config, str) and ("\n" in config or "=" in config):
        return config
    try:
        with open(config, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: cannot read {os.fspath(config)} ({error})") from error


def _keys(given: Given) -> Optional[Dict[str, Any]]:
    """The keys of a connector; ``None`` for an object of a class of one's own."""
    if isinstance(given, Connector):
        return given.config
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, (str, os.PathLike)):
        text = os.fspath(given)
        connector = of_url(text)
        if connector is None:
            raise ConfigError(
                "the URL tells no database: give postgresql://, mysql://, sqlite:, gs://, s3:// or projects/.., "
                "or a connector, Postgres(..) for instance"
            )
        return connector.config
    return None


class Running:
    """A pipeline that runs. Leaving its ``with`` stops it in good order; so does the end of the program."""

    def __init__(self, native: _NativeRunning, loop: "Optional[asyncio.AbstractEventLoop]") -> None:
        self._native, self._loop = native, loop

    def _wait(self, operation: Operation) -> Any:
        if self._loop is not None and self._loop is asyncio._get_running_loop():
            raise ConfigError("this would hold up the event loop that the pipeline runs in: await the _async method")
        return operation.wait()

    def status(self) -> Status:
        """How far it is, now. Cheap."""
        return Status(self._native.status())

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self._native.name()

    def health(self, bound: Seconds = 60) -> Health:
        """Whether the data path lives: neither the source nor the target may be silent for longer than ``bound``
        seconds."""
        return Health(self._native.health(_seconds(bound) or 0.0))

    @property
    def ended(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self._native.ended()

    def drain(self, timeout: Optional[Seconds] = None) -> Drained:
        """Marks the present on the source and waits until everything committed before is durable in the target, at
        most ``timeout`` seconds. The answer is true or false, never a guess."""
        return Drained(self._wait(self._native.drain(_seconds(timeout))))

    async def drain_async(self, timeout: Optional[Seconds] = None) -> Drained:
        """As :meth:`drain`."""
        return Drained(await _aio.result(self._native.drain(_seconds(timeout))))

    def wait(self) -> None:
        """Waits until it ends by itself: by an error, which is raised, or because it was done."""
        self._wait(self._native.wait())

    async def wait_async(self) -> None:
        """As :meth:`wait`."""
        await _aio.result(self._native.wait())

    def stop(self) -> None:
        """Finishes what is under way, and ends. An error that it ended by is raised."""
        self._wait(self._native.stop())

    async def stop_async(self) -> None:
        """As :meth:`stop`."""
        await _aio.result(self._native.stop())

    def progress(self, show: "bool | None" = None) -> Progress:
        """Shows how far it is while the ``with`` lasts: a bar on a terminal and in a notebook, lines elsewhere."""
        return Progress(self, show=show)

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, kind: "Optional[Type[BaseException]]", error: Optional[BaseException], _: Any) -> None:
        if error is None:
            self.stop()
            return
        # The error that is on its way is the one to tell.
        try:
            self.stop()
        except Exception:  # noqa: BLE001
            pass

    async def __aenter__(self) -> "Running":
        return self

    async def __aexit__(self, kind: "Optional[Type[BaseException]]", error: Optional[BaseException], _: Any) -> None:
        if error is None:
            await self.stop_async()
            return
        try:
            await self.stop_async()
        except Exception:  # noqa: BLE001
            pass

    def __repr__(self) -> str:
        return f"<Running {self.status()!r}>"

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()


# What runs when the program ends is stopped in good order; nothing is lost if it takes longer than this.
atexit.register(_stop_all, 30.0)
