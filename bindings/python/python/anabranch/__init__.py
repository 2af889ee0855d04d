"""anabranch carries the committed changes of one database to another, in order, each exactly once in effect.

::

    from anabranch import Pipeline, Postgres, Sqlite

    pipeline = (
        Pipeline("orders-dr")
        .source(Postgres("postgresql://replicator@db1/shop", publication="orders", slot="orders_dr"))
        .sink(Sqlite("orders.db"))
        .create_tables()
    )
    with pipeline.start() as running:
        print(running.drain())
"""

from ._anabranch import (
    BatchBuilder,
    Change,
    ChangeBatch,
    Column,
    Position,
    Table,
    TableChanges,
    Unit,
    __version__,
)
from . import _logging
from ._errors import (
    ConfigError,
    Error,
    FatalError,
    FencedError,
    IndeterminateError,
    RejectedError,
    TransientError,
)
from ._types import (
    ACCEPTED,
    DURABLE,
    UNCHANGED,
    Checkpoint,
    Chunk,
    Claim,
    Closed,
    Json,
    Lane,
    LeftOut,
    Partition,
    StartFrom,
    Stopped,
    Written,
)
from .connectors import Connector, DynamoDb, File, Files, Memory, MySql, Postgres, Sharded, Spanner, Sqlite, Yugabyte
from .custom import Checkpointer, Reader, Sharder, Sink, Source, Transform, Writer
from .letters import DeadLetters
from .order import Arrival, ByKey, ByTransaction, ByWindow
from .pipeline import Pipeline, Running
from .progress import Progress
from .results import DeadLetter, Drained, Health, Preflight, Record, Status, Verified

del _logging

__all__ = [
    "ACCEPTED",
    "Arrival",
    "BatchBuilder",
    "ByKey",
    "ByTransaction",
    "ByWindow",
    "Change",
    "ChangeBatch",
    "Checkpoint",
    "Checkpointer",
    "Chunk",
    "Claim",
    "Closed",
    "Column",
    "ConfigError",
    "Connector",
    "DURABLE",
    "DeadLetter",
    "DeadLetters",
    "Drained",
    "DynamoDb",
    "Error",
    "FatalError",
    "FencedError",
    "File",
    "Files",
    "Health",
    "IndeterminateError",
    "Json",
    "Lane",
    "LeftOut",
    "Memory",
    "MySql",
    "Partition",
    "Pipeline",
    "Position",
    "Postgres",
    "Preflight",
    "Progress",
    "Reader",
    "Record",
    "RejectedError",
    "Running",
    "Sharded",
    "Sharder",
    "Sink",
    "Source",
    "Spanner",
    "Sqlite",
    "StartFrom",
    "Status",
    "Stopped",
    "Table",
    "TableChanges",
    "Transform",
    "TransientError",
    "UNCHANGED",
    "Unit",
    "Verified",
    "Writer",
    "Written",
    "Yugabyte",
    "__version__",
]
