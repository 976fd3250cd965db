"""Every setting of a run: its default, its range and why one would change it. Imports neither torch nor ray."""

from minillm_ray.config.errors import InputError
from minillm_ray.config.load import load_config
from minillm_ray.config.run import RunConfig

__all__ = ["InputError", "RunConfig", "load_config"]
