"""One teacher replica without Ray: engine, head and encoder put together from a TeacherSpec, and probed."""

import asyncio
from dataclasses import dataclass
from typing import Literal

import torch

from minillm_ray.data.trajectory import Payload, Trajectory
from minillm_ray.engines.generation import EngineSettings
from minillm_ray.engines.heads import load_head
from minillm_ray.engines.hidden_payload import encode_hidden
from minillm_ray.engines.hidden_states import HiddenRows, HiddenStateEngine
from minillm_ray.engines.loop import EngineLoop, Together
from minillm_ray.engines.model_folder import describe_model, load_config
from minillm_ray.engines.sampled_payload import encode_sampled
from minillm_ray.engines.topk_payload import encode_topk
from minillm_ray.engines.transformers_hidden import TransformersEngine, reference
from minillm_ray.mixture.exchange import Proposal, Verdict
from minillm_ray.objective import Head
from minillm_ray.teacher.judge import Sampling
from minillm_ray.teacher.probe import Probe, ProbeResult, probe_trajectory
from minillm_ray.teacher.scorer import Encode, ScoreReport, TeacherReport, TeacherScorer


@dataclass(frozen=True)
class TeacherSpec:
    """What a replica is built from.

    payload_top_k: ids a token of a `topk` payload; probe_max_gb: 1e9 bytes of float32 weights up to which the probe
    loads the model into transformers as well.
    """

    settings: EngineSettings
    engine: Literal["vllm", "transformers"]
    payload: Literal["hidden", "topk", "sampled"]
    payload_top_k: int
    sampling: Sampling
    probe_max_gb: float

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.settings.dtype)


@dataclass(frozen=True)
class TeacherFacts:
    """What a loaded replica says of itself. block_tokens: of its prefix cache, where proposals had better end."""

    block_tokens: int
    probe: ProbeResult


class TeacherReplica:
    """Loads while the caller goes on; serves once `ready` has returned."""

    def __init__(self, spec: TeacherSpec) -> None:
        self._spec = spec
        self._loop: EngineLoop[HiddenStateEngine, HiddenRows] = EngineLoop(
            lambda: _build_engine(spec), name="teacher engine"
        )
        self._facts: TeacherFacts | None = None

    async def ready(self) -> TeacherFacts:
        """Once the engine is loaded and has passed the probe. Raises InputError where either fails."""
        await self._loop.ready()
        if self._facts is None:
            # After the engine, which claims a share of the GPU's memory as it finds it.
            head = await asyncio.to_thread(_load_head, self._spec)
            self._scorer = TeacherScorer(
                self._loop,
                head,
                encode=_encoder(self._spec, head),
                dtype=self._spec.dtype,
                sampling=self._spec.sampling,
            )
            block_tokens = await self._loop.command(lambda engine: engine.block_tokens)
            self._facts = TeacherFacts(block_tokens, await self._probe(head, block_tokens))
        return self._facts

    async def extend(self, session: str, proposal: Proposal) -> Verdict:
        return await self._scorer.extend(session, proposal)

    async def score(
        self, trajectory: Trajectory, session: str | None, *, exact: bool = False, together: Together | None = None
    ) -> tuple[ScoreReport, Payload]:
        """exact: the payload is hidden states, whatever the spec says."""
        encode = _hidden_encoder(self._spec) if exact else None
        return await self._scorer.score(trajectory, session, encode=encode, together=together)

    def forget(self, session: str) -> None:
        self._scorer.forget(session)

    def report(self) -> TeacherReport:
        return self._scorer.report()

    @property
    def seconds_since_progress(self) -> float:
        return self._loop.seconds_since_progress

    @property
    def busy_seconds(self) -> float:
        return self._loop.busy_seconds

    async def _probe(self, head: Head, block_tokens: int) -> ProbeResult:
        spec, size = self._spec, self._spec.settings.vocabulary_size
        trajectory = probe_trajectory(size, block_tokens=block_tokens, max_tokens=spec.settings.max_model_tokens)
        compared = None
        if _fits_transformers(spec):
            compared = await asyncio.to_thread(
                reference,
                spec.settings.model,
                trajectory.token_ids.tolist(),
                dtype=spec.dtype,
                vocabulary_size=size,
            )
        probe = Probe(spec.settings.model, head, spec.sampling.temperature, spec.dtype)
        return await probe.run(self._scorer, trajectory, compared)


def _build_engine(spec: TeacherSpec) -> HiddenStateEngine:
    if spec.engine == "transformers":
        return TransformersEngine(spec.settings)
    from minillm_ray.engines.pooling import PoolingEngine

    return PoolingEngine(spec.settings)


def _load_head(spec: TeacherSpec) -> Head:
    on_gpu = spec.settings.device == "gpu"
    return load_head(
        spec.settings.model,
        vocabulary_size=spec.settings.vocabulary_size,
        dtype=spec.dtype if on_gpu else torch.float32,  # a CPU multiplies in fp32: cast once, and not at every call
        device="cuda" if on_gpu else "cpu",
    )


def _encoder(spec: TeacherSpec, head: Head) -> Encode:
    temperature = spec.sampling.temperature
    if spec.payload == "topk":
        return lambda hidden, response_ids: encode_topk(
            hidden, head, response_ids, temperature=temperature, k=spec.payload_top_k
        )
    if spec.payload == "sampled":
        return lambda hidden, response_ids: encode_sampled(hidden, head, response_ids, temperature=temperature)
    return _hidden_encoder(spec)


def _hidden_encoder(spec: TeacherSpec) -> Encode:
    return lambda hidden, response_ids: encode_hidden(hidden, spec.dtype)


def _fits_transformers(spec: TeacherSpec) -> bool:
    """Quantised weights are other numbers in another library: they are never compared."""
    model = spec.settings.model
    if spec.settings.quantization is not None or hasattr(load_config(model), "quantization_config"):
        return False
    return describe_model(model).num_parameters * torch.float32.itemsize <= spec.probe_max_gb * 1e9
