"""Section `telemetry`: what a run writes beside its results."""

from pydantic import Field

from minillm_ray.config.base import Section


class TelemetrySection(Section):
    """`metrics.jsonl` and `events.jsonl` are always written."""

    samples_per_step: int = Field(4, ge=0)
    """Trained responses kept a step in samples.parquet, with the reverse KL of every token."""
    probe_every: int | None = Field(20, ge=1)
    """Optimizer steps between two measurements of the long-term gradient's signal-to-noise ratio; null for none."""
    tensorboard: bool = False
    """Also write TensorBoard files to RUN/tensorboard (needs the extra `tensorboard`)."""
