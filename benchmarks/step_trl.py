"""A few steps of one of TRL's trainers, timed step by step. benchmarks/step.py runs it in a venv that has trl.

Prints one JSON object: when each step ended, and the mean response tokens of each.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

COMMON = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
    "shuffle_dataset": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


class StepClock(TrainerCallback):
    """When each optimizer step ended, in seconds since the epoch."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.ended.append(time.time())


def make_trainer(job: dict[str, Any], clock: StepClock) -> Any:
    """MiniLLM: as TRL ships it. Distillation: the divergence alone, KL(student || teacher) over the vocabulary."""
    model, teacher = (
        AutoModelForCausalLM.from_pretrained(job[role], dtype=torch.float32) for role in ("student", "teacher")
    )
    settings = COMMON | {
        "output_dir": job["out"],
        "max_steps": job["steps"],
        "per_device_train_batch_size": job["micro_batch"],
        "gradient_accumulation_steps": job["prompts_per_step"] // job["micro_batch"],
        "max_completion_length": job["response_tokens"],
        "temperature": 1.0,
        "learning_rate": job["learning_rate"],
        "adam_beta1": job["betas"][0],
        "adam_beta2": job["betas"][1],
        "weight_decay": job["weight_decay"],
        "max_grad_norm": job["max_gradient_norm"],
    }
    rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
    arguments = {
        "train_dataset": Dataset.from_list([{"prompt": f"{row['instruction']}\n=>"} for row in rows]),
        "processing_class": AutoTokenizer.from_pretrained(job["student"], padding_side="left"),
        "callbacks": [clock],
    }
    if job["trainer"] == "minillm":
        from trl.experimental.minillm import MiniLLMConfig, MiniLLMTrainer

        config = MiniLLMConfig(**settings, num_generations=1, gamma=1.0)
        return MiniLLMTrainer(model=model, teacher_model=teacher, args=config, **arguments)
    from trl import DistillationConfig, DistillationTrainer

    return DistillationTrainer(
        model=model, teacher_model=teacher, args=DistillationConfig(**settings, beta=1.0), **arguments
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path, help="a JSON file as benchmarks/step.py writes it")
    job = json.loads(parser.parse_args().job.read_text())
    torch.set_num_threads(job["threads"])
    clock = StepClock()
    trainer = make_trainer(job, clock)
    trainer.train()
    lengths = [
        line["completions/mean_length"] for line in trainer.state.log_history if "completions/mean_length" in line
    ]
    print(json.dumps({"ended": clock.ended, "response_tokens": lengths}), flush=True)


if __name__ == "__main__":
    main()
