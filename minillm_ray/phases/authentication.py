"""Who may talk to a cluster that a run starts for itself: the run alone.

Ray reads these variables when it is first imported, so the command line sets them before that.
"""

import os
import secrets

from minillm_ray.config.run import RunConfig


def set_ray_environment(config: RunConfig) -> None:
    """Set Ray's variables in this process, unless the user did. A cluster that is named keeps its own ways."""
    if config.ray.address or os.environ.get("RAY_ADDRESS"):
        return
    if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        # A token of this run's own: nothing is written to the user's home.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # actors without a GPU see none
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
