"""What every phase of a run shares: its configuration, its inputs, and where it reports."""

from dataclasses import dataclass

from minillm_ray.config.run import RunConfig
from minillm_ray.phases.cluster import ClusterFacts
from minillm_ray.phases.control import ScaleRequests
from minillm_ray.phases.inputs import Inputs
from minillm_ray.phases.status import StatusFile
from minillm_ray.telemetry.console import RunConsole
from minillm_ray.telemetry.events import EventsWriter
from minillm_ray.telemetry.metrics import MetricsWriter
from minillm_ray.telemetry.samples import SamplesWriter


@dataclass(frozen=True)
class RunContext:
    """Given to each phase."""

    config: RunConfig
    cluster: ClusterFacts
    inputs: Inputs
    console: RunConsole
    metrics: MetricsWriter
    events: EventsWriter
    samples: SamplesWriter
    status: StatusFile
    scale_requests: ScaleRequests


@dataclass(frozen=True)
class Models:
    """Where the two models stand now: a phase returns the pair for the next one. Paths or Hugging Face ids."""

    student: str
    teacher: str
