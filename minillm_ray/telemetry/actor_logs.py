"""An actor's own output goes to a file of the run, so that the terminal stays the user's."""

import os
import sys
from pathlib import Path


def redirect_output(log_file: Path) -> None:
    """From now on everything this process prints, libraries and C++ included, is appended to `log_file`."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
