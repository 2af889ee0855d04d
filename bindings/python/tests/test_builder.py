"""The builder: every public method of Rust's has a face here, and every mistake names the argument and the fix."""

from __future__ import annotations

import datetime as dt
import pickle
import re
from decimal import Decimal
from pathlib import Path

import anabranch
import pytest
from anabranch import ByKey, ByWindow, ConfigError, Pipeline, Postgres, Sqlite
from conftest import SECRET

CORE = Path(__file__).parents[3] / "core" / "src" / "pipeline"

# What Rust needs two methods for, or calls otherwise because of its types.
OTHERWISE = {
    "source_arc": "source",
    "sink_arc": "sink",
    "checkpointer_arc": "checkpointer",
    "transform_boxed": "transform",
    # `Pipeline::dead_letters` in Rust gives the store; `dead_letters` here is the builder's setter.
    "Pipeline.dead_letters": "letters",
    # The status is asked of the handle itself, and stopping is.
    "monitor": "status",
    "stopper": "stop",
}


def public(file: str, of: str) -> list[str]:
    """The public methods of a type in a source file of the core."""
    text = (CORE / file).read_text()
    blocks = re.findall(rf"^impl {of} \{{\n(.*?)^\}}", text, flags=re.S | re.M)
    return re.findall(r"^    pub (?:async )?fn (\w+)", "".join(blocks), flags=re.M)


@pytest.mark.parametrize(
    ("file", "rust", "python", "least"),
    [
        ("builder.rs", "PipelineBuilder", anabranch.Pipeline, 20),
        ("configured.rs", "Pipeline", anabranch.Pipeline, 8),
        ("running.rs", "RunningPipeline", anabranch.Running, 5),
        ("running.rs", "Monitor", anabranch.Running, 2),
    ],
)
def test_every_public_method_has_a_face(file: str, rust: str, python: type, least: int) -> None:
    methods = public(file, rust)
    assert len(methods) >= least, f"only {methods} found in {file}: this test does not see the methods any more"
    for method in methods:
        face = OTHERWISE.get(f"{rust}.{method}", OTHERWISE.get(method, method))
        assert hasattr(python, face), f"{rust}::{method} has no face in {python.__name__}"
        if method in ("start", "check", "drain", "verify", "pause", "resume", "stored_status", "wait", "stop"):
            face = face.replace("stored_", "")
            assert hasattr(python, f"{face}_async"), f"{face} has no asynchronous twin"


def test_every_connector_has_a_class() -> None:
    registry = (CORE.parents[2] / "bindings" / "rust" / "registry.rs").read_text()
    registry = re.sub(r"^ *//.*$", "", registry, flags=re.M)  # its examples have connectors of their own
    types = set(re.findall(r'(?:source|sink|sink_and_stores)(?:::<[^(]*>)?\((?:&mut registry, )?"(\w+)"', registry))
    assert len(types) >= 6, f"only {types} found: this test does not see the registry any more"
    faces = {c.type for c in anabranch.Connector.__subclasses__()}
    assert types <= faces, f"without a class: {types - faces}"


def test_every_key_of_the_pipeline_can_be_set() -> None:
    """Whatever a configuration file has in `[pipeline]`, a setter sets, or `set`."""
    made = (
        Pipeline("p")
        .source(Postgres("postgresql://u@h/d", publication="a", slot="b"))
        .sink({"type": "sqlite", "path": "x.db"})
        .order(ByKey(lanes=1))
        .lanes(1)
        .snapshot("never")
        .create_tables()
        .snapshot_workers(2)
        .memory(mib=64)
        .retry(attempts=5)
        .stop_deadline(dt.timedelta(seconds=5))
        .mode("regular")
        .accept_lossy("t.c")
        .dead_letters(anabranch.Memory())
        .on_rejected("dead_letter")
        .max_attempts(3)
        .retry_letters_after(60)
        .classes([{"matches": "busy", "class": "retry"}])
        .keep_left_out(True, False)
        .checkpointer(anabranch.Memory())
        .transform({"type": "filter", "exclude": ["audit"]})
        .workers(id="rack-4", failover=5, most_partitions=3)
        .build()
    )
    assert made.name == "p"
    assert Pipeline.from_config(made.config).build().config == made.config


def test_setters_give_a_new_pipeline() -> None:
    base = Pipeline("p").source(Postgres("postgresql://u@h/d", publication="a", slot="b"))
    one, two = base.sink(Sqlite("1.db")), base.sink(Sqlite("2.db"))
    assert "sink" not in base.config
    assert one.config["sink"]["path"] == "1.db" and two.config["sink"]["path"] == "2.db"
    # The pipeline's own keys stand in these sections too, whichever is set first.
    assert base.create_tables().sink(Sqlite("1.db")).config["sink"]["create_tables"] is True
    assert base.snapshot("never").source("postgresql://u@h/d").config["source"]["snapshot"] == "never"


@pytest.mark.parametrize(
    ("url", "kind", "key"),
    [
        ("postgresql://h/d", "postgres", "url"),
        ("mysql://h/d", "mysql", "url"),
        ("sqlite:x.db", "sqlite", "path"),
        ("sqlite:///tmp/x.db", "sqlite", "path"),
        ("gs://bucket/x", "files", "path"),
        ("projects/p/instances/i/databases/d", "spanner", "database"),
    ],
)
def test_urls_tell_the_connector(url: str, kind: str, key: str) -> None:
    section = Pipeline("p").sink(url).config["sink"]
    assert section["type"] == kind and key in section


def complete() -> Pipeline:
    source = Postgres("postgresql://u@h/d", publication="a", slot="b")
    return Pipeline("p").source(source).sink(Sqlite("x.db"))


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (lambda: Pipeline("p").build(), "source: is missing"),
        (lambda: Pipeline("p").source(Postgres("postgresql://u@h/d")).build(), "sink: is missing"),
        (lambda: Pipeline("").source("postgresql://u@h/d").sink("sqlite:x").build(), "pipeline.name|source.publication|source.slot"),
        (lambda: complete().source(Postgres("postgresql://u@h/d", slott="b")).build(), "source.slott: .*did you mean slot"),
        (lambda: complete().source(Postgres("postgresql://u@h/d", slot=4)).build(), "source.slot: must be text"),
        (lambda: complete().source(Postgres("postgresql://u@h/d", slot=object())).build(), "source.slot: is a object"),
        (lambda: complete().source({"url": "x"}).build(), "source.type: is missing"),
        (lambda: complete().source({"type": "oracle"}).build(), 'there is no "oracle".*known: .*postgres'),
        (lambda: complete().source("oracle://h/d").build(), "the URL tells no database"),
        (lambda: complete().order("sideways").build(), "pipeline.order: must be transaction, key, window or arrival"),
        (lambda: complete().order(ByKey(lanes=3)).build(), "pipeline.lanes: must be 1 for sqlite"),
        (lambda: complete().order(ByWindow(length=0)).build(), "pipeline.window_seconds"),
        (lambda: complete().lanes(2).build(), "pipeline.lanes"),
        (lambda: complete().memory(mib=0).build(), "pipeline.memory_mib: must be at least 1"),
        (lambda: complete().memory(mib=2**70).build(), "pipeline.memory_mib"),
        (lambda: complete().snapshot("sometimes").build(), "source.snapshot: must be initial, never or only"),
        (lambda: complete().mode("resume_failed").build(), "pipeline.mode: resume_failed chooses shards"),
        (lambda: complete().each_shard().build(), "pipeline.each_shard: the source postgres does not keep shards apart"),
        (lambda: complete().create_tables("yes").build(), "sink.create_tables: must be true or false"),
        (lambda: complete().stop_deadline(1.5).build(), "pipeline.stop_seconds: must be a whole number"),
        (lambda: complete().retry(attempts=-1).build(), "pipeline.retries: must be a whole number"),
        (lambda: complete().transform({"type": "filtre"}).build(), 'transform.type: there is no "filtre"'),
        (lambda: complete().transform({"type": "project", "tables": ["a"]}).build(), "keep or drop|project"),
        (lambda: complete().set("pipelin", name="x").build(), "pipelin: .*did you mean pipeline"),
        (lambda: complete().set("source", slots="x").build(), "source.slots"),
        (lambda: complete().workers().build(), "pipeline.order"),
        (lambda: complete().on_rejected("maybe").build(), "dead_letters.on_rejected: must be"),
        (lambda: Pipeline.from_config("name = 'x'\n").build(), "name: .*not a key"),
        (lambda: Pipeline.from_config("[pipeline\n").build(), "line 1"),
        (lambda: Pipeline.from_config("/nowhere/x.toml").build(), "config: cannot read /nowhere/x.toml"),
        (lambda: Pipeline.from_config({"pipeline": 4}).build(), "pipeline: must be a table"),
        (lambda: Pipeline.from_config({"pipeline": {"name": "x"}, "transform": "a"}), "transform: must be a list"),
        (lambda: complete().verify(wait=-1), "wait: must be a number of seconds"),
        (lambda: complete().drain(timeout=float("nan")), "timeout: must be a number of seconds"),
        (lambda: complete().letters.list(["closed"]), "states: must be of open, held, applied and skipped"),
        (lambda: anabranch.Column("a", "strin"), "column a: the type strin is not known"),
        (lambda: anabranch.Table("t", [], key=["id"]), "key: the table t has no column id"),
    ],
)
def test_a_mistake_names_the_argument_and_the_fix(mistake, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as raised:
        mistake()
    assert raised.value.kind == "config"


def test_wrong_arguments_are_type_errors() -> None:
    with pytest.raises(TypeError, match="verify\\(\\) has no argument rates"):
        complete().verify(rates=4)
    with pytest.raises(TypeError, match="list of names"):
        complete().verify("orders")
    with pytest.raises(TypeError, match="neither apply nor shards"):
        complete().transform(object()).build()
    with pytest.raises(TypeError, match="object is no sink|has no attribute|no source|AttributeError") as raised:
        complete().sink(object()).build()
    assert raised.value


def test_no_secret_in_any_repr_or_error(tmp_path: Path) -> None:
    url = f"postgresql://u:{SECRET}@127.0.0.1:1/d"
    made = (
        Pipeline("p")
        .source(Postgres(url, publication="a", slot="b"))
        .sink(anabranch.MySql(f"mysql://u:{SECRET}@127.0.0.1:1/d", password=SECRET))
        .transform({"type": "mask", "tables": ["t"], "columns": {"c": {"with": "sha256", "key": SECRET}}})
        .retry(attempts=0)
    )
    connectors = [Postgres(url, slot="b"), anabranch.MySql(url, password=SECRET), anabranch.DynamoDb(secret_access_key=SECRET)]
    shown = [repr(made), str(made), *map(repr, connectors), *map(str, connectors)]
    assert "slot='b'" in shown[2], "what is no secret is shown"
    mistakes = [
        lambda: made.check(),
        lambda: made.status(),
        lambda: made.source(Postgres(url, slot=SECRET, publication=4)).build(),
        lambda: made.source(Postgres(url, slot="b", **{"pasword": SECRET})).build(),
        lambda: made.source(Postgres([SECRET])).build(),
        lambda: made.source({"type": SECRET[:3], "url": url}).build(),
        lambda: made.source(f"oracle://u:{SECRET}@h/d"),
        lambda: made.source(Postgres(f"{SECRET} is no URL", publication="a", slot="b")).check(),
        lambda: made.transform({"type": "mask", "tables": ["t"], "columns": {"c": {"key": SECRET}}}).build(),
        lambda: Pipeline.from_config(f"[source]\nurl = '{SECRET}\n"),
    ]
    for mistake in mistakes:
        with pytest.raises(anabranch.Error) as raised:
            mistake()
        shown += [str(raised.value), repr(raised.value)]
        chain = raised.value.__cause__ or raised.value.__context__
        shown += [repr(chain), str(chain)]
    assert len(shown) > 20
    for text in shown:
        assert SECRET not in text, text


def test_errors_are_of_the_kind_that_says_what_to_do() -> None:
    kinds = {c.kind for c in anabranch.Error.__subclasses__()}
    error = (CORE.parent / "error.rs").read_text()
    rust = re.findall(r"^    (\w+),$", error[error.index("pub enum ErrorKind") : error.index("/// An error with")], re.M)
    assert len(rust) == 6 and kinds == {name.lower() for name in rust}
    copy = pickle.loads(pickle.dumps(anabranch.FencedError("taken")))
    assert isinstance(copy, anabranch.FencedError) and copy.kind == "fenced" and str(copy) == "taken"


def test_values_know_their_types() -> None:
    from anabranch._types import canonical

    utc = dt.timezone.utc
    for value, of, text in [
        (Decimal("1E+2"), "decimal(10,2)", "100"),
        (Decimal("NaN"), "decimal", "NaN"),
        (dt.datetime(2024, 1, 2, 3, 4, 5, 60000), "timestamp", "2024-01-02 03:04:05.06"),
        (dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=utc), "timestamptz", "2024-01-02 03:04:05+00"),
        (dt.datetime(2024, 1, 2), "timestamptz", None),
        (dt.datetime(2024, 1, 2, tzinfo=utc), "timestamp", None),
        (dt.date(24, 1, 2), "date", "0024-01-02"),
        (dt.time(1, 2, tzinfo=dt.timezone(dt.timedelta(hours=-5, minutes=-30))), "timetz", "01:02:00-05:30"),
        ({"a": [1, None]}, "json", '{"a": [1, null]}'),
        (1.5, "decimal", None),
        ("x", "int64", None),
    ]:
        assert canonical(value, of) == text, (value, of)
