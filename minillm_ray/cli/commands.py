"""The commands and their flags. Each imports what it needs when it runs, so that help and errors come at once."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minillm_ray.config import RunConfig


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        prog="minillm-ray",
        description="Distil a large language model into a small one by MiniLLM (arXiv 2306.08543) on Ray and vLLM.",
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_compare(commands)
    _add_evaluate(commands)
    _add_generate(commands)
    _add_report(commands)
    _add_status(commands)
    _add_scale(commands)
    _add_convert_gguf(commands)
    _add_prune(commands)
    return root


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("train", help="run the phases of a configuration")
    command.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")
    _add_overrides(command, example="-s learner.ranks=2, -s phases.0.epochs=1")
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


def _add_overrides(command: argparse.ArgumentParser, *, example: str) -> None:
    command.add_argument(
        "-s",
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"override one setting: {example}; may be repeated",
    )


def _train(options: argparse.Namespace) -> None:
    from minillm_ray.config import load_config
    from minillm_ray.config.load import dump_config
    from minillm_ray.config.placement import describe_placement, plan_placement

    config = load_config(options.config, options.overrides)
    _check_objective(config)
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


def _check_objective(config: "RunConfig") -> None:
    if any(phase.kind == "minillm" for phase in config.phases):
        from minillm_ray.phases.objective import objective_settings

        objective_settings(config)


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("compare", help="run several methods over several seeds, and tabulate them")
    command.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/quickstart_compare.yaml")
    _add_overrides(command, example="-s compare.seeds=[10]")
    command.add_argument(
        "--dry-run", action="store_true", help="check every run of CONFIG and list them; starts and writes nothing"
    )
    command.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    from minillm_ray.config.compare import load_comparison

    comparison = load_comparison(options.config, options.overrides)
    configs = [*([comparison.prepare] if comparison.prepare else []), *(run.config for run in comparison.runs)]
    for config in configs:
        _check_objective(config)
    if options.dry_run:
        for config in configs:
            print(f"{config.run_dir}: {', then '.join(phase.kind for phase in config.phases)}")
        return
    from minillm_ray.phases.compare import compare

    compare(comparison)


def _add_evaluate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("evaluate", help="measure a model on held-out data, and against its teacher")
    command.add_argument("model", metavar="MODEL", help="a model folder or a Hugging Face id")
    command.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="FILE",
        help="prompts and right answers: .jsonl, .parquet or a Hugging Face id; may be repeated, one table a file",
    )
    command.add_argument(
        "--teacher",
        default=None,
        metavar="PATH",
        help="a model with the same vocabulary: adds both KL divergences, exposure bias and a column of its own",
    )
    command.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="responses to each prompt: seeds 10, 20, ..."
    )
    command.add_argument("--out", type=Path, default=None, metavar="DIR", help="a new folder; without it only tables")
    command.add_argument("--template", default="alpaca", choices=("alpaca", "chat", "bare"))
    command.add_argument("--max-prompt-tokens", type=int, default=256, metavar="N")
    command.add_argument("--max-response-tokens", type=int, default=256, metavar="N")
    command.add_argument("--temperature", type=float, default=1.0, metavar="T")
    command.add_argument("--limit", type=int, default=None, metavar="N", help="only the first N rows of each file")
    command.add_argument(
        "--no-repeat-ngram", type=int, default=None, metavar="N", help="never sample an N-gram twice; 6 in the paper"
    )
    command.add_argument(
        "--batch-tokens", type=int, default=4096, metavar="N", help="padded tokens scored at once; lower it for memory"
    )
    command.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from minillm_ray.phases.evaluate import EvaluateRequest, evaluate

    evaluate(
        EvaluateRequest(
            model=options.model,
            data=tuple(options.data),
            teacher=options.teacher,
            seeds=options.seeds,
            out=options.out,
            template=options.template,
            max_prompt_tokens=options.max_prompt_tokens,
            max_response_tokens=options.max_response_tokens,
            temperature=options.temperature,
            limit=options.limit,
            no_repeat_ngram=options.no_repeat_ngram,
            batch_tokens=options.batch_tokens,
        )
    )


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


def _add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("report", help="write RUN/report.html, also while the run goes on")
    command.add_argument(
        "run_dir", type=Path, metavar="RUN", help="the run_dir of a run or a comparison that has begun to train"
    )
    command.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    from minillm_ray.phases.compare import is_comparison, write_report_again
    from minillm_ray.report import write_report

    write = write_report_again if is_comparison(options.run_dir) else write_report
    print(write(options.run_dir))


def _add_status(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("status", help="print where a run stands and what its replicas do")
    command.add_argument("run_dir", type=Path, metavar="RUN", help="the run_dir of a run, on storage seen here")
    command.set_defaults(run=_status)


def _status(options: argparse.Namespace) -> None:
    from minillm_ray.phases.status import print_status

    print_status(options.run_dir)


def _add_scale(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "scale",
        help="ask a run that goes on for another number of replicas",
        description="New replicas start as soon as the cluster has room for them; those that are too many finish what "
        "they have in hand and leave. Returns at once: `minillm-ray status RUN` shows how far it is.",
    )
    command.add_argument("run_dir", type=Path, metavar="RUN", help="the run_dir of that run, on storage seen here")
    command.add_argument(
        "counts", nargs="+", metavar="ROLE=N", help="rollout=4 or teacher=2, or both: replicas wanted in all"
    )
    command.set_defaults(run=_scale)


def _scale(options: argparse.Namespace) -> None:
    from minillm_ray.phases.control import parse_counts, request_scale

    counts = parse_counts(options.counts)
    request_scale(options.run_dir, counts)
    wanted = " ".join(f"{role}={count}" for role, count in counts.items())
    print(f"Asked {options.run_dir} for {wanted}; minillm-ray status {options.run_dir} shows how far it is.")


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
