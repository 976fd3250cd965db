"""Adapters alone are trained; samplers and the saved model get plain weights that compute the same."""

from pathlib import Path

import pytest
import torch
from scripted.models import VOCABULARY, head_logits, make_trainer, tiny
from scripted.scored import random_sequences
from torch import Tensor

from minillm_ray.learner.lora import LoraSettings
from minillm_ray.learner.micro_batches import MicroBatch, collate
from minillm_ray.learner.student import Student, load_student
from minillm_ray.learner.trainer import StudentTrainer
from minillm_ray.objective import Head

# peft says that it found gpt2's matrices transposed, which the tests below check.
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")

IDS = torch.arange(24).reshape(2, 12) % VOCABULARY
SLOTS = torch.arange(24)
(TOKENS, PROMPT) = random_sequences(((2, 9),))[0]


def load(folder: Path, architecture: str, *, target_modules: list[str] | None = None, **changes: object) -> Student:
    tiny(architecture, **changes).save_pretrained(folder)
    return load_student(
        str(folder),
        vocabulary_size=VOCABULARY,
        dtype=torch.float32,
        device=torch.device("cpu"),
        gradient_checkpointing=False,
        lora=LoraSettings(rank=2, alpha=6.0, target_modules=target_modules),
    )


def trained(student: Student, *, steps: int = 3) -> StudentTrainer:
    trainer = make_trainer(student.model, learning_rate=5e-2, has_adapters=True)
    batch = collate([TOKENS.numpy()], [PROMPT], [0])
    for _ in range(steps):
        assert trainer.step([batch], _loss).applied
    return trainer


def _loss(batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
    return torch.nn.functional.cross_entropy(head_logits(hidden, head), batch.tokens)


def logits_of(student: Student) -> Tensor:
    return student(IDS, SLOTS, head_logits).detach()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi"])
def test_merged_weights_compute_what_the_adapted_model_computes(architecture: str, tmp_path: Path) -> None:
    """After training, in a plain model that never heard of adapters; gpt2 keeps its matrices transposed."""
    student = load(tmp_path, architecture)
    before = logits_of(student)
    trainer = trained(student)
    adapted = logits_of(trainer.student)
    assert float((adapted - before).abs().max()) > 0.05
    plain = tiny(architecture, seed=9)
    plain.load_state_dict(dict(trainer.student.named_weights()), strict=True)
    torch.testing.assert_close(logits_of(Student(plain, vocabulary_size=VOCABULARY)), adapted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_fresh_adapters_change_nothing(architecture: str, tmp_path: Path) -> None:
    """Version 1 of the weights is the model as it came, bit for bit, by its own names."""
    published = dict(load(tmp_path, architecture).named_weights())
    expected = tiny(architecture).state_dict()
    assert list(published) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(published[name], tensor), name


def test_only_adapters_are_trained(tmp_path: Path) -> None:
    """The model's own weights stay as they are, also underneath a trained adapter."""
    student = load(tmp_path, "llama")
    names = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert names
    assert all(".lora_" in name for name in names)
    own = {name: p.detach().clone() for name, p in student.named_parameters() if name not in names}
    after = dict(trained(student).student.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in own.items())


def test_every_linear_layer_but_the_head_has_an_adapter(tmp_path: Path) -> None:
    """So only their merged weights differ from what they were."""
    trainer = trained(load(tmp_path, "llama"))
    before = tiny("llama").state_dict()
    changed = {name for name, tensor in trainer.student.named_weights() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}


def test_target_modules_name_the_layers_that_get_one(tmp_path: Path) -> None:
    """Those and no others."""
    trainer = trained(load(tmp_path, "llama", target_modules=["q_proj", "down_proj"]))
    before = tiny("llama").state_dict()
    changed = {name for name, tensor in trainer.student.named_weights() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith(("q_proj.weight", "down_proj.weight"))}


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    """Under both its names, as the embedding."""
    published = dict(trained(load(tmp_path, "llama", tie_word_embeddings=True)).student.named_weights())
    assert torch.equal(published["lm_head.weight"], published["model.embed_tokens.weight"])


def test_the_plain_model_is_the_one_that_is_saved(tmp_path: Path) -> None:
    """Without peft's wrapper: its class is the architecture's own."""
    student = load(tmp_path, "llama")
    assert type(student.plain_model).__name__ == "LlamaForCausalLM"
    plain = Student(tiny("llama"), vocabulary_size=VOCABULARY)
    assert plain.plain_model is plain.model
