"""`minillm-ray`: picks the command and turns what went wrong into one message and an exit status."""

import argparse
import sys
from collections.abc import Sequence

from minillm_ray.cli import commands
from minillm_ray.config.errors import InputError, RunError, Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = commands.parser().parse_args(arguments)
    try:
        return _guarded(options)
    except BrokenPipeError:
        return 1


def _guarded(options: argparse.Namespace) -> int:
    try:
        options.run(options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except RunError as error:
        print(f"The run failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; every actor was stopped.", file=sys.stderr)
        return 130
    except Terminated:
        print("Stopped by SIGTERM; every actor was stopped.", file=sys.stderr)
        return 143
    return 0
