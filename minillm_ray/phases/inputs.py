"""What a run reads, checked before anything is written or started: models, tokenizers, data."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_ray.config.errors import InputError
from minillm_ray.config.phases import KdPhase, MiniLLMPhase, SftPhase
from minillm_ray.config.run import RunConfig
from minillm_ray.data import (
    Example,
    PromptSet,
    SupervisedSet,
    Template,
    TextChunks,
    build_prompt_set,
    build_supervised_set,
    load_template,
    load_tokenizer,
    read_chunks,
    read_examples,
    require_same_vocabulary,
    write_embedded,
)
from minillm_ray.data.vocabulary import require_eos
from minillm_ray.engines.embedded_models import write_embedded_model
from minillm_ray.engines.model_folder import describe_model, require_model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EMBEDDED_TRAIN_ROWS = 6000
_EMBEDDED_HELD_OUT_ROWS = 400
_EMBEDDED_VOCABULARY = 768


@dataclass(frozen=True)
class Inputs:
    """Checked inputs of a run. student, teacher: what `from_pretrained` takes."""

    student: str
    teacher: str
    tokenizer: "PreTrainedTokenizerBase"
    template: Template
    train: list[Example]
    held_out: list[Example]
    plain_text: TextChunks | None
    max_prompt_tokens: int
    max_response_tokens: int

    @property
    def vocabulary_size(self) -> int:
        return len(self.tokenizer)

    @property
    def end_token_id(self) -> int:
        return require_eos(self.tokenizer)

    def moved(self, old: Path, new: Path) -> "Inputs":
        """The same inputs after folder `old`, which may hold the models, was renamed to `new`."""

        def path(model: str) -> str:
            return str(new / Path(model).relative_to(old)) if Path(model).is_relative_to(old) else model

        return replace(self, student=path(self.student), teacher=path(self.teacher))

    def prompts(self, examples: list[Example]) -> PromptSet:
        """Tokenised prompts of `examples`."""
        return build_prompt_set(examples, self.tokenizer, self.template, self.max_prompt_tokens)

    def pairs(self, examples: list[Example]) -> SupervisedSet:
        """Tokenised prompts and responses of `examples`."""
        return build_supervised_set(
            examples,
            self.tokenizer,
            self.template,
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
        )


def prepare_inputs(config: RunConfig, *, embedded: Path) -> Inputs:
    """Read and check everything that `config` names; the quick start's own data and models are made in `embedded`.

    Raises InputError with the value, what was expected and the remedy.
    """
    sources = {config.data.train, config.data.held_out}
    if "embedded" in sources:
        write_embedded(
            embedded,
            num_train=_EMBEDDED_TRAIN_ROWS,
            num_held_out=_EMBEDDED_HELD_OUT_ROWS,
            vocab_size=_EMBEDDED_VOCABULARY,
            seed=config.seed,
        )
    student = _model(config.student.model, "student", embedded, config.seed)
    teacher = _model(config.teacher.model, "teacher", embedded, config.seed)
    tokenizer = load_tokenizer(student)
    require_same_vocabulary(tokenizer, load_tokenizer(teacher))
    for role, model in (("student", student), ("teacher", teacher)):
        require_room(
            role,
            model,
            len(tokenizer),
            max_sequence_tokens(config),
            settings="data.max_prompt_tokens + rollout.max_response_tokens, or data.text_chunk_tokens,",
        )
    require_eos(tokenizer)
    trains_on_outputs = any(isinstance(phase, SftPhase | KdPhase) for phase in config.phases)
    measures_outputs = any(not isinstance(phase, MiniLLMPhase) or phase.select == "rouge_l" for phase in config.phases)
    inputs = Inputs(
        student=student,
        teacher=teacher,
        tokenizer=tokenizer,
        template=load_template(config.data.template, tokenizer),
        train=_examples(config.data.train, embedded / "train.jsonl", config.data.train_rows, trains_on_outputs),
        held_out=_examples(
            config.data.held_out, embedded / "held_out.jsonl", config.data.held_out_rows, measures_outputs
        ),
        plain_text=_plain_text(config, tokenizer),
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_response_tokens=config.rollout.max_response_tokens,
    )
    inputs.prompts(inputs.train[:1])  # a template that leaves no room for an instruction is refused here, not later
    return inputs


def max_sequence_tokens(config: RunConfig) -> int:
    """The longest sequence that a model of this run sees."""
    sequence = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    return max(sequence, config.data.text_chunk_tokens) if config.data.plain_text else sequence


def _plain_text(config: RunConfig, tokenizer: "PreTrainedTokenizerBase") -> TextChunks | None:
    if config.data.plain_text is None:
        return None
    return read_chunks(config.data.plain_text, tokenizer, chunk_tokens=config.data.text_chunk_tokens)


def _model(source: str, role: str, embedded: Path, seed: int) -> str:
    kind, _, size = source.partition(":")
    if kind != "embedded":
        return require_model_folder(source, role=role)
    if size not in ("teacher", "student"):
        raise InputError(f"{role}.model is {source}; expected embedded:teacher, embedded:student, a folder or an id")
    if not (embedded / "tokenizer").is_dir():
        raise InputError(
            f"{role}.model is {source}, whose tokenizer is made from the embedded data; set data.train=embedded"
        )
    folder = embedded / size
    if not folder.is_dir():
        write_embedded_model(size, embedded / "tokenizer", folder, seed)  # type: ignore[arg-type]
    return str(folder)


def _examples(source: str, embedded: Path, limit: int | None, need_output: bool) -> list[Example]:
    return read_examples(embedded if source == "embedded" else source, limit=limit, need_output=need_output)


def require_room(role: str, model: str, vocabulary_size: int, num_tokens: int, *, settings: str) -> None:
    """Raise InputError unless the model has every id and takes `num_tokens`, the sum of what `settings` names."""
    facts = describe_model(model)
    if facts.vocab_size < vocabulary_size:
        raise InputError(
            f"{role}: {model} has {facts.vocab_size} embedding rows, but its tokenizer has {vocabulary_size} ids. "
            f"Take the tokenizer that the model was trained with, or resize its embedding"
        )
    if facts.max_position_embeddings is not None and facts.max_position_embeddings < num_tokens:
        raise InputError(
            f"{role}: {model} takes {facts.max_position_embeddings} tokens, but {settings} is {num_tokens}. "
            f"Lower these settings"
        )
