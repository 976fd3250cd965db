"""The teacher hands over one hidden state for each response token: that of the position which predicts it."""

import numpy as np
import pytest
import torch
from scripted.roles import ScriptedHiddenStateEngine

from minillm_ray.data.trajectory import Trajectory
from minillm_ray.engines.hidden_payload import decode_hidden
from minillm_ray.teacher.scorer import TeacherScorer


def trajectory(prompt: list[int], response: list[int]) -> Trajectory:
    count = len(response)
    return Trajectory(
        prompt_index=0,
        prompt_ids=np.array(prompt, dtype=np.int32),
        response_ids=np.array(response, dtype=np.int32),
        sampler_logprob=np.zeros(count, dtype=np.float32),
        behavior_logprob=None,
        weight_version=np.zeros(count, dtype=np.int32),
        truncated=False,
    )


SOME = [trajectory([10, 11, 12], [20, 21]), trajectory([13], [22, 23, 24]), trajectory([14, 15], [25])]


def test_each_response_token_has_the_state_of_the_position_before_it() -> None:
    """The last prompt token predicts the first response token; in the order given."""
    payloads = TeacherScorer(ScriptedHiddenStateEngine(), dtype=torch.float32).score(SOME)
    tokens = [decode_hidden(payload)[:, 0].tolist() for payload in payloads]
    places = [decode_hidden(payload)[:, 1].tolist() for payload in payloads]
    assert tokens == [[12, 20], [13, 22, 23], [15]]
    assert places == [[2, 3], [0, 1, 2], [1]]


def test_the_last_token_is_not_sent_to_the_engine() -> None:
    """It predicts nothing that is trained; everything else goes in one call."""
    engine = ScriptedHiddenStateEngine()
    TeacherScorer(engine, dtype=torch.float32).score(SOME)
    assert engine.calls == [[[10, 11, 12, 20], [13, 22, 23], [14, 15]]]


@pytest.mark.parametrize(("dtype", "held"), [(torch.float32, np.float32), (torch.bfloat16, np.uint16)])
def test_a_payload_is_in_the_teachers_dtype(dtype: torch.dtype, held: type) -> None:
    """bfloat16 halves what travels; the numbers come back as that dtype has them."""
    (payload,) = TeacherScorer(ScriptedHiddenStateEngine(), dtype=dtype).score(SOME[:1])
    assert payload.data.dtype == held
    assert payload.data.shape == (2, 3)
    assert torch.equal(decode_hidden(payload), torch.tensor([[12, 2, 4], [20, 3, 4]], dtype=dtype))


def test_the_same_tokens_give_the_same_numbers() -> None:
    """Nothing is kept from one call to the next."""
    scorer = TeacherScorer(ScriptedHiddenStateEngine(), dtype=torch.float32)
    first, second = scorer.score(SOME), scorer.score(SOME[::-1])[::-1]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.data, other.data)


def test_nothing_to_score_is_nothing_scored() -> None:
    """A share may be empty."""
    assert TeacherScorer(ScriptedHiddenStateEngine(), dtype=torch.float32).score([]) == []
