"""The command line: commands, flags, exit codes, messages. Nothing imports this room.

Exit status: 0 done, 1 the run failed, 2 bad usage, configuration, model or data, 130 interrupted.
"""

from minillm_ray.cli.main import main

__all__ = ["main"]
