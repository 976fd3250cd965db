"""Section `checkpoint`: how much work a death can cost, and how much disk that takes."""

from pydantic import Field

from minillm_ray.config.base import Section


class CheckpointSection(Section):
    """Written to run_dir/checkpoints beside the training; `train` on the same run_dir continues from the newest."""

    every_steps: int = Field(50, ge=1)
    """Optimizer steps between two checkpoints: as many are made again after a death. In the MiniLLM phase a termination
    signal writes one at once; the supervised phases go on from the last that is there."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept, the newest ones; while the next is written there is room for one more. Each takes 12 bytes a
    trained parameter. With 1 a file that decays on disk leaves nothing to go back to."""
