"""What the teacher says of a response, against a direct log-softmax: encoded, packed end to end, and its size."""

import pickle

import numpy as np
import pytest
import torch

from minillm_ray.data.trajectory import HiddenPayload, Payload
from minillm_ray.engines import payload_logprobs
from minillm_ray.engines.hidden_payload import encode_hidden
from minillm_ray.engines.payload_packing import packed_teacher
from minillm_ray.engines.sampled_payload import encode_sampled
from minillm_ray.engines.topk_payload import encode_topk
from minillm_ray.objective import Head

V, D, N = 40, 8, 11
CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HIDDEN = normal(N, D)
RESPONSE = np.arange(N, dtype=np.int32) * 3 % V
HEADS = {
    "plain": Head(normal(V, D, seed=1)),
    "padded": Head(normal(V + 6, D, seed=2), vocab_size=V),
    "whole": Head(normal(V, D, seed=3), normal(V, seed=4), scale=0.5, soft_cap=2.0),
}


def direct(head: Head, temperature: float) -> torch.Tensor:
    """log p, float [n, V], all at once in fp64."""
    logits = HIDDEN.double() @ head.weight.double().t()
    logits = logits if head.bias is None else logits + head.bias.double()
    logits = logits * (head.scale or 1.0)
    if head.soft_cap is not None:
        logits = head.soft_cap * (logits / head.soft_cap).tanh()
    return (logits[:, :V] / temperature).log_softmax(-1).float()


@pytest.fixture(params=[1, 3, 100], ids=lambda rows: f"{rows}_rows")
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows of logits that are in memory at once."""
    monkeypatch.setattr(payload_logprobs, "_CHUNK_BYTES", 4 * V * request.param)
    return request.param


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_a_top_k_payload_is_the_k_largest_and_the_mass_of_the_rest(head: str, temperature: float, chunk: int) -> None:
    """Over the common vocabulary, at the objective's temperature, however many rows at a time."""
    payload = encode_topk(HIDDEN, HEADS[head], RESPONSE, temperature=temperature, k=5)
    log_p = direct(HEADS[head], temperature)
    best = log_p.topk(5)
    np.testing.assert_array_equal(payload.ids, best.indices)
    np.testing.assert_allclose(payload.logprob, best.values, atol=1e-5)
    rest = (1 - best.values.double().exp().sum(1)).log()
    np.testing.assert_allclose(payload.tail_logprob, rest, atol=1e-5)
    np.testing.assert_allclose(payload.token_logprob, log_p[range(N), RESPONSE], atol=1e-5)
    assert {array.dtype for array in payload.arrays.values()} == {np.dtype(np.int32), np.dtype(np.float32)}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_a_sampled_payload_is_log_p_of_the_responses_own_tokens(head: str, temperature: float, chunk: int) -> None:
    """And nothing else."""
    payload = encode_sampled(HIDDEN, HEADS[head], RESPONSE, temperature=temperature)
    expected = direct(HEADS[head], temperature)[range(N), RESPONSE]
    np.testing.assert_allclose(payload.token_logprob, expected, atol=1e-5)
    assert payload.token_logprob.dtype == np.float32


def test_k_beyond_the_vocabulary_is_all_of_it_with_an_empty_rest() -> None:
    """log 0 of the rest, not nan."""
    payload = encode_topk(HIDDEN, HEADS["padded"], RESPONSE, temperature=1.0, k=1000)
    assert payload.ids.shape == (N, V)
    assert bool((payload.tail_logprob == -np.inf).all())


def test_a_rest_that_rounding_would_lose_keeps_its_mass() -> None:
    """The k hold all but e^-30 of the mass: 1 minus their sum is 0 in fp32."""
    head = Head(torch.eye(4))
    hidden = torch.tensor([[30.0, 30.0, 0.0, 0.0]])
    payload = encode_topk(hidden, head, np.zeros(1, np.int32), temperature=1.0, k=2)
    np.testing.assert_allclose(payload.tail_logprob, [-30.0], rtol=1e-5)


def payloads(kind: str) -> list[Payload]:
    head = HEADS["plain"]
    parts = [(HIDDEN[:4], RESPONSE[:4]), (HIDDEN[4:], RESPONSE[4:])]
    if kind == "topk":
        return [encode_topk(hidden, head, ids, temperature=1.0, k=5) for hidden, ids in parts]
    if kind == "sampled":
        return [encode_sampled(hidden, head, ids, temperature=1.0) for hidden, ids in parts]
    return [encode_hidden(hidden, getattr(torch, kind)) for hidden, _ in parts]


@pytest.mark.parametrize(
    ("kind", "num_bytes"), [("float32", 4 * D), ("bfloat16", 2 * D), ("topk", 8 * 5 + 8), ("sampled", 4)]
)
def test_a_payload_counts_its_bytes_and_survives_the_way(kind: str, num_bytes: int) -> None:
    """Bytes for each token; the same arrays after pickling."""
    payload = payloads(kind)[1]
    assert payload.nbytes == num_bytes * (N - 4)
    again = pickle.loads(pickle.dumps(payload))
    for name, array in payload.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_packed_payloads_are_those_of_one_long_response(kind: str) -> None:
    """End to end in order, ids as int64."""
    head = HEADS["plain"]
    if kind == "topk":
        whole: Payload = encode_topk(HIDDEN, head, RESPONSE, temperature=1.0, k=5)
    else:
        whole = encode_sampled(HIDDEN, head, RESPONSE, temperature=1.0)
    packed, expected = packed_teacher(payloads(kind), CPU), packed_teacher([whole], CPU)
    assert type(packed) is type(expected)
    for name, tensor in vars(expected).items():
        torch.testing.assert_close(getattr(packed, name), tensor)
    np.testing.assert_array_equal(
        vars(packed)["ids" if kind == "topk" else "logprob"], next(iter(whole.arrays.values()))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_hidden_states_are_the_states(dtype: torch.dtype) -> None:
    """In the teacher's dtype."""
    packed = packed_teacher(payloads(str(dtype).removeprefix("torch.")), CPU)
    assert torch.equal(packed, HIDDEN.to(dtype))


def test_hidden_payloads_are_named_hidden() -> None:
    """The name under which a bad batch keeps them."""
    data = np.zeros((2, 3), np.float32)
    assert list(HiddenPayload(data).arrays) == ["hidden"]
