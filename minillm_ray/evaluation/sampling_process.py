"""Sampling in a process of its own, so that the engine's memory is free again once it ends.

vLLM keeps an engine's weights and cache reachable after the last reference to it is gone: a second engine in the same
process, or a model to score with, would not fit beside it on a GPU.
"""

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from minillm_ray.config.errors import RunError
from minillm_ray.engines.environment import keep_freed_memory
from minillm_ray.engines.generation import EngineSettings
from minillm_ray.evaluation.responses import Response, TokenIds, sample_responses
from minillm_ray.telemetry.console import RunConsole, StepNumbers

_EXIT_SECONDS = 30.0
"""For an engine to end cleanly once its responses are here."""


@dataclass(frozen=True)
class SamplingJob:
    """name: what the progress line calls the model; prompts: of each data file, int32 [tokens] each."""

    name: str
    settings: EngineSettings
    temperature: float
    end_token_id: int
    prompts: Sequence[Sequence[TokenIds]]
    seeds: Sequence[int]
    max_new_tokens: int


def sample_apart(job: SamplingJob) -> list[list[Response]]:
    """The responses to the prompts of each file. The child inherits the environment: set `engine_environment` before.

    Raises RunError if the child ends without them; its own messages stand on stderr.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_sample_and_send, args=(job, sender))
    process.start()
    sender.close()
    try:
        responses: list[list[Response]] = receiver.recv()
        process.join(_EXIT_SECONDS)
        return responses
    except EOFError:
        process.join()
        raise RunError(
            f"the process that sampled from {job.name} ({job.settings.model}) ended with status {process.exitcode} and "
            f"gave no responses. See its messages above; a negative status is a signal, -9 most often a lack of memory"
        ) from None
    finally:
        receiver.close()
        if process.is_alive():
            process.terminate()
        process.join()


def _sample_and_send(job: SamplingJob, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the parent ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    from minillm_ray.engines.generation import GenerationEngine

    warnings.simplefilter("ignore", FutureWarning)  # vLLM's, about torch
    engine = GenerationEngine(job.settings, temperature=job.temperature, stop_token_ids=[job.end_token_id])
    progress = _Progress(job.name, len(job.seeds) * sum(map(len, job.prompts)))
    responses = [
        sample_responses(
            engine, prompts, seeds=job.seeds, max_new_tokens=job.max_new_tokens, on_finished=progress.finished
        )
        for prompts in job.prompts
    ]
    progress.end()
    sender.send(responses)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Progress:
    """One line on stderr: responses done, their mean length, tokens a second."""

    def __init__(self, name: str, num_responses: int) -> None:
        self._console = RunConsole()
        self._console.begin(f"responses of {name}", total_steps=num_responses)
        self._began_at = time.monotonic()
        self._num_responses = self._num_tokens = 0

    def finished(self, response: Response) -> None:
        self._num_responses += 1
        self._num_tokens += len(response.token_ids)
        numbers = StepNumbers(
            tokens_per_second=self._num_tokens / max(time.monotonic() - self._began_at, 1e-9),
            response_tokens=self._num_tokens / self._num_responses,
        )
        self._console.step(self._num_responses, numbers)

    def end(self) -> None:
        self._console.end()
