"""The stubs say what the module has, and the package has types throughout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from anabranch import _anabranch as native

HERE = Path(__file__).parent.parent


def environment() -> "dict[str, str]":
    """Where the package is staged, or else installed."""
    staged = os.environ.get("ANABRANCH_STAGED")
    return {**os.environ, **({"MYPYPATH": staged} if staged else {}), "MYPY_CACHE_DIR": os.devnull}


def run(*command: str) -> None:
    where = os.environ.get("ANABRANCH_STAGED", str(HERE / "tests"))
    ran = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=environment(), cwd=where, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Success" in ran.stdout, ran.stdout


def test_the_package_is_typed() -> None:
    run("mypy", "--strict", "--config-file", str(HERE / "pyproject.toml"), "-p", "anabranch")


def test_the_stubs_say_what_the_module_has() -> None:
    allowed = HERE / "tests" / "stubs.allowed"
    # A wheel is built without the conformance suites.
    lenient = [] if hasattr(native, "conformance_sink") else ["--ignore-unused-allowlist"]
    options = ["--allowlist", str(allowed), "--mypy-config-file", str(HERE / "pyproject.toml"), *lenient]
    run("mypy.stubtest", "anabranch._anabranch", *options)


def test_a_user_is_checked(tmp_path: Path) -> None:
    """What a user writes has types: a mistake is found."""
    file = tmp_path / "user.py"
    file.write_text(
        "from anabranch import Pipeline, Sqlite, Status\n"
        "made = Pipeline('p').sink(Sqlite('x.db')).memory(mib='many')\n"
        "status: int = made.start().status()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, str(file)],
        capture_output=True, text=True, env=environment(), check=False,
    )
    assert 'Argument "mib" to "memory"' in ran.stdout and 'expression has type "Status"' in ran.stdout, ran.stdout
    assert "Found 2 errors" in ran.stdout, ran.stdout
