"""The commands and their flags. Each imports what it needs when it runs, so that help and errors come at once."""

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        prog="minillm-ray",
        description="Distil a large language model into a small one by MiniLLM (arXiv 2306.08543) on Ray and vLLM.",
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_generate(commands)
    _add_convert_gguf(commands)
    _add_prune(commands)
    return root


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("train", help="run the phases of a configuration")
    command.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")
    command.add_argument(
        "-s",
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting: -s learner.ranks=2, -s phases.0.epochs=1; may be repeated",
    )
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="check CONFIG, print it resolved together with the placement it asks for; starts no actor, writes nothing",
    )
    command.add_argument(
        "--fresh",
        action="store_true",
        help="start over: an earlier run in run_dir is moved aside, to run_dir.1 and so on, never deleted",
    )
    command.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from minillm_ray.config import load_config
    from minillm_ray.config.load import dump_config
    from minillm_ray.config.placement import describe_placement, plan_placement

    config = load_config(options.config, options.overrides)
    if any(phase.kind == "minillm" for phase in config.phases):
        from minillm_ray.phases.objective import objective_settings

        objective_settings(config)
    if options.dry_run:
        device = "gpu" if config.ray.device == "gpu" else "cpu"
        print(dump_config(config))
        print(f"placement ({device}; ray.device is {config.ray.device}):")
        print(describe_placement(plan_placement(config, device=device)))
        return
    from minillm_ray.phases.authentication import set_ray_environment

    set_ray_environment(config)
    from minillm_ray.phases.run import run

    run(config, fresh=options.fresh)


def _add_generate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("generate", help="let a model answer the prompts of a file")
    command.add_argument("model", metavar="MODEL", help="a model folder or a Hugging Face id")
    command.add_argument("--data", required=True, metavar="FILE", help="prompts: .jsonl, .parquet or a Hugging Face id")
    command.add_argument("--out", required=True, type=Path, metavar="FILE", help="a new .jsonl or .parquet file")
    command.add_argument("--template", default="alpaca", choices=("alpaca", "chat", "bare"))
    command.add_argument("--max-prompt-tokens", type=int, default=256, metavar="N")
    command.add_argument("--max-response-tokens", type=int, default=256, metavar="N")
    command.add_argument("--temperature", type=float, default=1.0, metavar="T")
    command.add_argument("--seed", type=int, default=10, metavar="N")
    command.add_argument("--limit", type=int, default=None, metavar="N", help="only the first N prompts")
    command.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> None:
    from minillm_ray.phases.generate import GenerateRequest, generate

    generate(
        GenerateRequest(
            model=options.model,
            data=options.data,
            out=options.out,
            template=options.template,
            max_prompt_tokens=options.max_prompt_tokens,
            max_response_tokens=options.max_response_tokens,
            temperature=options.temperature,
            seed=options.seed,
            limit=options.limit,
        )
    )


def _add_convert_gguf(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("convert-gguf", help="turn a GGUF file into a model folder")
    command.add_argument("file", metavar="FILE", help="a .gguf file, or package:NAME for the one that NAME carries")
    command.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    command.set_defaults(run=_convert_gguf)


def _convert_gguf(options: argparse.Namespace) -> None:
    from minillm_ray.engines.gguf import convert_gguf

    convert_gguf(options.file, options.out, report=print)


def _add_prune(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("prune", help="cut a student out of a teacher by keeping some of its layers")
    command.add_argument("teacher", metavar="TEACHER", help="a model folder or a Hugging Face id")
    command.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    command.add_argument(
        "--keep-layers", type=int, required=True, metavar="N", help="evenly spaced; the first and the last are kept"
    )
    command.set_defaults(run=_prune)


def _prune(options: argparse.Namespace) -> None:
    from minillm_ray.engines.prune import prune_layers

    prune_layers(options.teacher, options.out, keep_layers=options.keep_layers)
