"""The student's hidden states and head are its logits, without dropout, on any architecture that we claim."""

from pathlib import Path

import pytest
import torch
from scripted.models import VOCABULARY, head_logits, save_tiny_folder, tiny
from torch import Tensor

from minillm_ray.learner.student import Student, load_student
from minillm_ray.objective import Head

ARCHITECTURES = ("llama", "gpt2", "gemma2", "granite", "cohere", "phi")
IDS = torch.arange(24).reshape(2, 12) % VOCABULARY
SLOTS = torch.tensor([0, 3, 11, 12, 20])


def logits_of(student: Student) -> Tensor:
    return student(IDS, SLOTS, head_logits)


def load(folder: Path, *, gradient_checkpointing: bool = False) -> Student:
    return load_student(
        str(folder),
        vocabulary_size=VOCABULARY,
        dtype=torch.float32,
        device=torch.device("cpu"),
        gradient_checkpointing=gradient_checkpointing,
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_times_the_head_are_the_models_own_logits(architecture: str) -> None:
    """Tied or not, with a bias (phi), a scale (granite, cohere) or a soft cap (gemma2)."""
    model = tiny(architecture).eval()
    expected = model(input_ids=IDS).logits.reshape(-1, VOCABULARY)[SLOTS]
    torch.testing.assert_close(logits_of(Student(model, vocabulary_size=VOCABULARY)), expected, atol=1e-5, rtol=1e-5)


def test_what_the_heads_have_beside_a_weight_is_not_idle_here() -> None:
    """The test above would pass without bias, scale and cap if these models had none to speak of."""
    heads = {name: Student(tiny(name), vocabulary_size=VOCABULARY)(IDS, SLOTS, keep_both) for name in ARCHITECTURES}
    for name, (hidden, head) in heads.items():
        plain = hidden @ head.weight.T
        same = torch.allclose(plain, head_logits(hidden, head), atol=1e-3)
        assert same == (name in ("llama", "gpt2"))


def keep_both(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    return hidden, head


def test_rows_that_pad_the_head_are_left_out() -> None:
    """The vocabulary is the tokenizer's; the rest of the embedding is never predicted."""
    model = tiny("llama")
    hidden, head = Student(model, vocabulary_size=VOCABULARY - 5)(IDS, SLOTS, keep_both)
    assert head_logits(hidden, head).shape == (len(SLOTS), VOCABULARY - 5)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_reach_body_and_head(tied: bool) -> None:
    """A tied head adds to the embedding's gradient: the whole is that of the model's own logits."""
    gradients = []
    for through_head in (True, False):
        model = tiny("llama", tie_word_embeddings=tied)
        if through_head:
            logits = logits_of(Student(model, vocabulary_size=VOCABULARY))
        else:
            logits = model(input_ids=IDS).logits.reshape(-1, VOCABULARY)[SLOTS]
        logits.logsumexp(-1).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)


DROPPING = {
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "llama": {"attention_dropout": 0.5},
    "phi": {"attention_dropout": 0.5, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
}


@pytest.mark.parametrize("architecture", sorted(DROPPING))
def test_a_student_trains_without_dropout(architecture: str, tmp_path: Path) -> None:
    """Two passes in training mode are equal, and equal to evaluation: the samplers have no dropout either."""
    model = tiny(architecture, **DROPPING[architecture])
    model.save_pretrained(tmp_path)
    assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
    student = load(tmp_path)
    assert student.training
    first, second = logits_of(student), logits_of(student)
    assert torch.equal(first, second)
    assert torch.equal(first, logits_of(student.eval()))


@pytest.mark.parametrize("architecture", sorted(DROPPING))
def test_the_configuration_keeps_its_dropout(architecture: str, tmp_path: Path) -> None:
    """What is saved later is the model as it came: whoever fine-tunes it finds its own settings."""
    tiny(architecture, **DROPPING[architecture]).save_pretrained(tmp_path)
    config = load(tmp_path).model.config
    assert {name: getattr(config, name) for name in DROPPING[architecture]} == DROPPING[architecture]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_gradient_checkpointing_gives_the_same_gradient_for_a_second_forward_pass(
    architecture: str, tmp_path: Path
) -> None:
    """The layers run twice, which shows that it is on, and nothing else changes."""
    tiny(architecture).save_pretrained(tmp_path)
    results = []
    for checkpointing in (False, True):
        student = load(tmp_path, gradient_checkpointing=checkpointing)
        calls: list[int] = []
        for module in student.model.modules():
            if type(module).__name__ in ("LlamaMLP", "GPT2MLP"):
                # Before the pass: a recomputation ends as soon as it has what it needs.
                module.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss = logits_of(student).logsumexp(-1).sum()
        loss.backward()
        results.append((len(calls), loss.item(), {name: p.grad for name, p in student.named_parameters()}))
    (plain_calls, plain_loss, plain), (calls, loss, gradients) = results
    assert (plain_calls, calls) == (2, 4)
    assert loss == plain_loss
    for name, gradient in plain.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-5)


def test_a_loaded_student_has_the_weights_of_the_folder_in_the_dtype_asked_for(tmp_path: Path) -> None:
    """Whatever dtype the folder is in: training weights are float32."""
    save_tiny_folder(tmp_path / "model")
    from transformers import AutoModelForCausalLM

    half = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    weights = dict(load(tmp_path / "half").named_weights())
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    for name, tensor in half.state_dict().items():
        assert torch.equal(weights[name], tensor.float())
