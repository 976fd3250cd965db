"""Sequence-level distillation: the teacher answers every training prompt, the student is fine-tuned on its answers.

    prompts -> teacher (vLLM) -> RUN/phases/NAME/teacher_responses.parquet -> SFT of the student on them

Source: Kim and Rush, arXiv 1606.07947, as the SeqKD baseline of MiniLLM has it: one sampled answer a prompt. The data's
own responses are never trained on; they judge the student on the held-out rows, as in `sft`.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from minillm_ray.config.errors import RunError
from minillm_ray.config.phases import SeqKdPhase
from minillm_ray.data import PromptSet, SupervisedSet, pair_prompts
from minillm_ray.data.encoding import TokenIds
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.phases.roles import PromptReferences, RunParts, launched, teacher_sampler_launcher
from minillm_ray.phases.run_context import Models, RunContext
from minillm_ray.phases.sft import fine_tune
from minillm_ray.pipeline.protocols import Task
from minillm_ray.remote import get, ready_among
from minillm_ray.telemetry.console import StepNumbers
from minillm_ray.telemetry.files import write_atomically

_ATTEMPTS = 3
_IN_HAND = 256
"""Responses that a replica is asked for at a time: more than an engine batches, so that it never waits."""


def run_seqkd(context: RunContext, phase: SeqKdPhase, models: Models, *, name: str) -> Models:
    """Train the student. Returns the pair with the best checkpoint in its place."""
    prompts = context.inputs.prompts(context.inputs.train[: phase.train_rows])
    path = context.config.run_dir / "phases" / name / "teacher_responses.parquet"
    if path.is_file():
        context.console.message(f"{name}: the teacher's answers are there already")
    else:
        _draw_responses(context, phase, models.teacher, prompts, path, name=name)
    train = read_teacher_pairs(path, prompts)
    if train.num_cut or train.num_truncated:
        context.console.message(
            f"{name}: {train.num_cut} of {len(train)} prompts were cut to data.max_prompt_tokens, "
            f"{train.num_truncated} answers reached rollout.max_response_tokens and are trained without an end"
        )
    best = fine_tune(context, phase, train, model=models.student, name=name)
    return replace(models, student=str(best))


def read_teacher_pairs(path: Path, prompts: PromptSet) -> SupervisedSet:
    """Every prompt with the teacher's answer to it. Raises RunError for a file that is not of these prompts."""
    from pyarrow import parquet

    rows = parquet.read_table(path, columns=["prompt_index", "response_ids", "truncated"]).to_pylist()
    if [row["prompt_index"] for row in rows] != list(range(len(prompts))):
        raise RunError(
            f"{path} does not answer the {len(prompts)} prompts of this phase; remove it to have it made anew"
        )
    responses: list[tuple[TokenIds, bool]] = [
        (np.asarray(row["response_ids"], dtype=np.int32), row["truncated"]) for row in rows
    ]
    return pair_prompts(prompts, responses)


def _draw_responses(
    context: RunContext, phase: SeqKdPhase, teacher: str, prompts: PromptSet, path: Path, *, name: str
) -> None:
    """Write the file, whole. Nobody watches the actors: where one dies, what is missing is drawn by new ones."""
    config = context.config
    reference = ray.put(prompts)
    launcher = teacher_sampler_launcher(
        RunParts(config, context.cluster, context.inputs),
        model=teacher,
        prompts=PromptReferences(reference, reference),
        temperature=phase.temperature,
    )
    context.console.begin(f"{name}: the teacher answers", total_steps=len(prompts))
    drawn: dict[int, Any] = {}
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with launched(launcher, config.teacher.replicas, message=context.console.message) as clients:
                get(
                    [client.ready() for client in clients],
                    timeout_seconds=config.pipeline.startup_timeout_seconds,
                    work="teacher: loading the sampling engine",
                )
                _draw(context, clients, drawn, len(prompts))
            break
        except RunError as error:
            if attempt == _ATTEMPTS:
                raise
            context.console.message(f"{name}: {len(prompts) - len(drawn)} answers are still to be drawn: {error}")
    context.console.end()
    responses = [drawn[index] for index in range(len(prompts))]
    get(
        _write.remote(path, responses, context.inputs.tokenizer),
        timeout_seconds=config.pipeline.call_timeout_seconds,
        work=f"{name}: writing the teacher's answers",
    )


def _draw(context: RunContext, clients: Sequence[Any], drawn: dict[int, Any], num_prompts: int) -> None:
    """Fill `drawn` with references to the trajectories of the prompts that it lacks."""
    missing = [index for index in range(num_prompts) if index not in drawn]
    in_hand: dict[Any, tuple[int, int, Any]] = {}
    loads = [0] * len(clients)
    to_come = iter(missing)
    while True:
        while min(loads) < _IN_HAND and (index := next(to_come, None)) is not None:
            place = loads.index(min(loads))
            counts, trajectory = clients[place].respond(
                Task("train", index, 0, mixed=False), teacher=None, session="", together=None
            )
            in_hand[counts] = place, index, trajectory
            loads[place] += 1
        if not in_hand:
            return
        finished = ready_among(list(in_hand), timeout_seconds=context.config.pipeline.call_timeout_seconds)
        if not finished:
            raise RunError(f"no answer came for {context.config.pipeline.call_timeout_seconds:g} s")
        for counts in finished:
            place, index, trajectory = in_hand.pop(counts)
            loads[place] -= 1
            get(counts, timeout_seconds=30.0, work=f"teacher {place}: answering a prompt")
            drawn[index] = trajectory
        context.console.step(len(drawn), StepNumbers())


@ray.remote(num_cpus=0)
def _write(path: Path, responses: list[Any], tokenizer: Any) -> None:
    write_responses(path, ray.get(responses), tokenizer)


def write_responses(path: Path, responses: Sequence[Trajectory], tokenizer: Any) -> None:
    """One row a response: prompt_index, response_ids, text, truncated."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "prompt_index": pyarrow.array([response.prompt_index for response in responses], pyarrow.int32()),
            "response_ids": pyarrow.array(
                [response.response_ids.tolist() for response in responses], pyarrow.list_(pyarrow.int32())
            ),
            "text": [tokenizer.decode(response.response_ids, skip_special_tokens=True) for response in responses],
            "truncated": [response.truncated for response in responses],
        }
    )
    content = io.BytesIO()
    parquet.write_table(table, content)
    write_atomically(path, content.getvalue())
