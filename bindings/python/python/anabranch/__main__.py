"""The ``anabranch`` command."""

from __future__ import annotations

import signal
import sys

from ._anabranch import command


def main() -> int:
    """Runs the command with the arguments of this process."""
    # The command handles Ctrl-C itself while it runs a pipeline; anywhere else it ends the process, as of
    # a program that is not Python.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return command(["anabranch", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
