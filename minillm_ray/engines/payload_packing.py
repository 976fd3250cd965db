"""Payloads laid end to end as the objective takes them: the responses of a micro-batch in one."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from minillm_ray.data.trajectory import HiddenPayload, Payload, TopKPayload
from minillm_ray.engines.hidden_payload import decode_hidden
from minillm_ray.objective import SampledTeacher, TeacherArgument, TopKTeacher


def packed_teacher(payloads: Sequence[Payload], device: torch.device) -> TeacherArgument:
    """Of payloads of one kind, N rows in all: float [N, d_t] hidden states, or a TopKTeacher or SampledTeacher of N."""
    first = payloads[0]
    if isinstance(first, HiddenPayload):
        return torch.cat([decode_hidden(cast(HiddenPayload, payload)) for payload in payloads]).to(device)
    rows = {
        name: torch.from_numpy(np.concatenate([payload.arrays[name] for payload in payloads])).to(device)
        for name in first.arrays
    }
    if isinstance(first, TopKPayload):
        return TopKTeacher(
            ids=rows["topk_ids"].long(),
            logprob=rows["topk_logprob"],
            tail_logprob=rows["topk_tail_logprob"],
            token_logprob=rows["token_logprob"],
        )
    return SampledTeacher(rows["token_logprob"])
