"""Databases, by the keys of their configuration.

Every keyword is a key of the connector, as a configuration file has it; see the connector's documentation. A key that
the connector does not know is an error when the pipeline is built, with the name that may have been meant. Texts may
be ``env:NAME`` or ``file:PATH`` where the key holds a secret."""

from __future__ import annotations

from typing import Any, ClassVar, Dict, Mapping, Optional

# Values that are shown. Everything else may be, or hold, a secret.
_SHOWN = frozenset(
    "type slot publication snapshot tables table include exclude order change_stream region on_rejected".split()
)


class Connector:
    """A database as a source, as a sink, or as a store of checkpoints and dead letters.

    Keys are given as keywords, or as a dict, or both. A text that stands alone is the connector's main key, which
    is its URL for most."""

    #: The ``type`` of it in a configuration file.
    type: ClassVar[str] = ""
    #: The key that a text alone stands for.
    main: ClassVar[str] = "url"

    def __init__(self, config: "Optional[str | Mapping[str, Any]]" = None, /, **keys: Any) -> None:
        given: Dict[str, Any] = {}
        if config is not None:
            given.update(config if isinstance(config, Mapping) else {self.main: config})
        given.update(keys)
        given.setdefault("type", self.type)
        self._keys = given

    @property
    def config(self) -> Dict[str, Any]:
        """The keys, as a configuration has them. It may hold secrets."""
        return dict(self._keys)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({hidden(self._keys, leave_out=('type',))})"


def hidden(keys: Mapping[str, Any], leave_out: "tuple[str, ...]" = ()) -> str:
    """Keys, with the values of those that cannot be secrets."""

    def shown(key: str, value: Any) -> bool:
        return isinstance(value, (bool, int, float)) or (key in _SHOWN and isinstance(value, (str, list, tuple)))

    parts = (f"{k}={v!r}" if shown(k, v) else f"{k}=..." for k, v in keys.items() if k not in leave_out)
    return ", ".join(parts)


class Postgres(Connector):
    """PostgreSQL: source, sink, checkpoints and dead letters."""

    type = "postgres"


class Yugabyte(Connector):
    """YugabyteDB: source and sink."""

    type = "yugabyte"


class MySql(Connector):
    """MySQL and MariaDB: sink, checkpoints and dead letters."""

    type = "mysql"


class Sqlite(Connector):
    """A SQLite file: sink, checkpoints and dead letters. A text alone is its path."""

    type = "sqlite"
    main = "path"


class DynamoDb(Connector):
    """DynamoDB: source, sink, checkpoints and dead letters. A text alone is the region."""

    type = "dynamodb"
    main = "region"


class Spanner(Connector):
    """Spanner: source, sink, checkpoints and dead letters. A text alone is the database's full name."""

    type = "spanner"
    main = "database"


class Files(Connector):
    """Files in a folder, on Google Cloud Storage or Amazon S3. A text alone is the folder, or its URL."""

    type = "files"
    main = "path"


class Sharded(Connector):
    """Several databases behind one sink, of a shards file."""

    type = "sharded"
    main = "shards_file"


class File(Connector):
    """Checkpoints or dead letters in a local folder."""

    type = "file"
    main = "path"


class Memory(Connector):
    """Checkpoints or dead letters in memory: for trying things out."""

    type = "memory"


_SCHEMES = {
    "postgresql": Postgres,
    "postgres": Postgres,
    "mysql": MySql,
    "mariadb": MySql,
    "gs": Files,
    "s3": Files,
}


def of_url(url: str) -> Optional[Connector]:
    """The connector that a URL is of; ``None`` if its scheme tells nothing."""
    scheme, colon, rest = url.partition(":")
    if scheme == "sqlite" and colon:
        return Sqlite(rest[2:] if rest.startswith("//") else rest)
    if scheme in _SCHEMES and rest.startswith("//"):
        return _SCHEMES[scheme](url)
    if url.startswith("projects/"):
        return Spanner(url)
    return None
