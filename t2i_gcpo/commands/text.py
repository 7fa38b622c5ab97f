"""`t2i-gcpo text train|eval|heatmap|credit|study`: the same credit for language models that reason in text."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

from t2i_gcpo.commands.options.number_types import count, finite, positive, seed
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.evaluation.intervals import in_words
from t2i_gcpo.text.trl_version import require_trl
from t2i_gcpo.utils.destination import check_folder
from t2i_gcpo.utils.interrupt import STATUS, Terminated
from t2i_gcpo.utils.json_files import read_json

USAGE = """usage: t2i-gcpo text train|eval|heatmap|credit|study [OPTIONS]

GCPO for chain-of-thought language models, on TRL (pip install 't2i-gcpo[text]').

  train    fine-tune a causal language model; --config FILE.yaml, and all options of TRL's GRPOConfig
  eval     the share of questions that a model answers rightly, per task, with confidence intervals
  heatmap  which tokens of a completion get the credit, as HTML and PNG
  credit   the share of the credit on the digits that decide an arithmetic answer, with controls
  study    several arms with several seeds, the learning rate tuned for each, pooled in one table

`t2i-gcpo text train --help` and so on list the options."""


def main(argv: list[str]) -> int:
    """Run one of the five commands. ValueError for another name."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    commands = {"train": train, "eval": evaluate, "heatmap": heatmap, "credit": credit, "study": run_study}
    if name not in commands:
        raise ValueError(f"there is no command 'text {name}'; allowed: {', '.join(commands)}")
    return commands[name](rest)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command by its name; that of train lacks TRL's own options."""
    return {
        "train": train_parser(),
        "eval": eval_parser(),
        "heatmap": heatmap_parser(),
        "credit": credit_parser(),
        "study": study_parser(),
    }


def train(argv: list[str]) -> int:
    """Fine-tune a language model."""
    require_trl()
    from t2i_gcpo.text import run as runs
    from t2i_gcpo.text.options import parse

    print_config = "--print-config" in argv
    run, config, as_yaml = parse([argument for argument in argv if argument != "--print-config"])
    if print_config:
        print(as_yaml, end="")
        return 0
    check_folder(
        Path(str(config.output_dir)), runs.CONFIG, runs.METRICS, runs.BEFORE, runs.AFTER, option="--output-dir"
    )
    trainer, interrupted_by = runs.train(run, config, as_yaml)
    folder = Path(str(config.output_dir))
    if interrupted_by is not None:
        print(
            f"{interrupted_by}: stopped after step {trainer.state.global_step} of {trainer.state.max_steps}, whose "
            "checkpoint is saved; go on with the same command and --resume"
        )
        return STATUS[interrupted_by]
    if trainer.accelerator.is_main_process:
        if (folder / runs.AFTER).is_file():
            _print_before_after(folder)
        print(f"wrote {folder / runs.MODEL}; use it with --model {folder / runs.MODEL}")
    return 0


def train_parser() -> argparse.ArgumentParser:
    """Make a parser of the options of `train` that are not TRL's own, for the reference; it needs no TRL."""
    from t2i_gcpo.text.credit_options import CreditOptions
    from t2i_gcpo.text.options import DESCRIPTION, TextRun

    parser = argparse.ArgumentParser(prog="t2i-gcpo text train", description=DESCRIPTION)
    parser.add_argument("--config", type=home_path, help="YAML file of options")
    for kind in (TextRun, CreditOptions):
        for f in dataclasses.fields(kind):
            choices = get_args(get_type_hints(kind)[f.name]) or None
            parser.add_argument(
                f"--{f.name.replace('_', '-')}", type=_type(kind(), f.name), default=f.default, choices=choices,
                help=f.metadata["help"],
            )  # fmt: skip
    return parser


def _type(options: Any, name: str) -> Callable[[str], Any]:
    """Choose argparse's type of an option by its default; a whole number that may not be 0 is told by its own check."""
    default = vars(options)[name]
    if type(default) is not int:
        return finite if type(default) is float else type(default)
    try:
        dataclasses.replace(options, **{name: 0})
    except ValueError:
        return positive
    return count


def _print_before_after(folder: Path) -> None:
    from t2i_gcpo.text import run as runs

    for name in (runs.BEFORE, runs.AFTER):
        if (folder / name).is_file():
            result = read_json(folder / name)
            score = in_words(result["overall"], result["ci95"], result["n"])
            print(f"{result['prompts']}, {result['checkpoint']}: {score}")


def evaluate(argv: list[str]) -> int:
    """Score a model on questions with answers, and write eval.json."""
    args = eval_parser().parse_args(argv)
    check_folder(args.out, "eval.json")
    from t2i_gcpo.text import evaluate as evaluation
    from t2i_gcpo.text.data import read_rows
    from t2i_gcpo.text.models import load
    from t2i_gcpo.text.rewards_by_name import load_reward
    from t2i_gcpo.utils.device import pick_device

    rows = read_rows(args.data, limit=args.limit, system=args.system or None)
    reward = load_reward(args.reward)
    model, tokenizer = load(args.model, device=pick_device(args.device))
    result = evaluation.evaluate(
        model, tokenizer, rows, reward, samples=args.samples, temperature=args.temperature,
        max_new_tokens=args.max_new_tokens, batch=args.batch, seed=args.seed, progress=True, model_name=args.model,
        data=args.data, reward_name=args.reward,
    )  # fmt: skip
    path = result.save(args.out / "eval.json")
    e = result.estimates
    for task in e.by_task:
        print(f"{task}: {in_words(e.by_task[task], e.by_task_ci95[task], e.n_by_task[task])}")
    print(f"overall: {in_words(e.overall, e.ci95, result.n)}")
    print(f"wrote {path}")
    return 0


def eval_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo text eval", description=evaluate.__doc__)
    add = parser.add_argument
    _model_options(parser)
    add(
        "--data",
        default="arithmetic:test",
        help="arithmetic:test, a file, or NAME:SPLIT of the hub (default: %(default)s)",
    )
    add("--limit", type=count, default=0, help="questions at most; 0: all, of the arithmetic task 600")
    add(
        "--reward", default="arithmetic", help="arithmetic, math, or your own as module:callable (default: %(default)s)"
    )
    add("--samples", type=positive, default=1, help="completions of each question (default: %(default)s)")
    add("--temperature", type=finite, default=1.0, help="0 is greedy (default: %(default)s)")
    add("--batch", type=positive, default=100, help="completions at once (default: %(default)s)")
    add("--seed", type=seed, default=0, help="(default: %(default)s)")
    return parser


def heatmap(argv: list[str]) -> int:
    """Sample completions of a question and draw which of their tokens get the credit, as HTML and PNG."""
    args = heatmap_parser().parse_args(argv)
    check_folder(args.out, "heatmap.html", "heatmap.png")
    from t2i_gcpo.text import heatmap as maps
    from t2i_gcpo.text.evaluate import generate_ids
    from t2i_gcpo.text.heatmap_files import save
    from t2i_gcpo.text.models import load
    from t2i_gcpo.text.rewards_by_name import load_reward
    from t2i_gcpo.utils.device import pick_device

    if not args.prompt.strip():
        raise ValueError("--prompt is empty; give the question whose completions are drawn")
    if args.temperature < 0:
        raise ValueError(f"--temperature is {args.temperature}; it must be at least 0")
    import torch

    recipe = maps.Recipe(args.normalization, args.top, args.mass, args.floor)
    model, tokenizer = load(args.model, device=pick_device(args.device))
    prompt = _chat(args.prompt, args.system) if tokenizer.chat_template is not None else args.prompt
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        completions = generate_ids(model, tokenizer, [prompt] * args.samples, args.temperature, args.max_new_tokens)
    scores = None
    if args.answer:
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        found = load_reward(args.reward)(completions=texts, answer=[args.answer] * len(texts))
        scores = [float("nan") if score is None else float(score) for score in found]
    drawn = maps.describe(
        model, tokenizer, prompt, completions, negative=args.negative_prompt, recipe=recipe, scores=scores
    )
    for path in save(drawn, args.out, name="heatmap", title=args.prompt, recipe=recipe):
        print(f"wrote {path}")
    return 0


def _chat(question: str, system: str) -> list[dict[str, str]]:
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": question}]


def heatmap_parser() -> argparse.ArgumentParser:
    from t2i_gcpo import credit as weights

    parser = argparse.ArgumentParser(prog="t2i-gcpo text heatmap", description=heatmap.__doc__)
    add = parser.add_argument
    _model_options(parser)
    add("--prompt", required=True, help="the question")
    add("--answer", default="", help="its right answer; then completions are scored, and advantages drawn")
    add("--reward", default="arithmetic", help="what scores them (default: %(default)s)")
    add("--negative-prompt", default="wrong", help="wrong, empty, or a file with {question} (default: %(default)s)")
    add("--samples", type=positive, default=4, help="completions, compared as one group (default: %(default)s)")
    add("--temperature", type=finite, default=1.0, help="0 is greedy (default: %(default)s)")
    add("--normalization", default="rank", choices=("rank", "softmax", "minmax", "none"), help="(default: %(default)s)")
    add("--top", type=finite, default=weights.DEFAULT_TOP, help="(default: %(default)s)")
    add("--mass", type=finite, default=weights.DEFAULT_MASS, help="(default: %(default)s)")
    add("--floor", type=finite, default=weights.DEFAULT_FLOOR, help="nats (default: %(default)s)")
    add("--seed", type=seed, default=0, help="(default: %(default)s)")
    return parser


def credit(argv: list[str]) -> int:
    """Measure which share of the credit lies on the digits that decide an arithmetic answer.

    Entropy and random ranks stand beside it as controls.
    """
    args = credit_parser().parse_args(argv)
    check_folder(args.out, "credit.json")
    from t2i_gcpo.text.credit_location import measure
    from t2i_gcpo.text.data import read_rows
    from t2i_gcpo.text.models import load
    from t2i_gcpo.utils.device import pick_device

    rows = read_rows(args.data, limit=args.limit)
    model, tokenizer = load(args.model, device=pick_device(args.device))
    result = measure(
        model, tokenizer, rows, negative=args.negative_prompt, samples=args.samples, seed=args.seed,
        max_new_tokens=args.max_new_tokens, progress=True, about={"checkpoint": args.model, "prompts": args.data},
    )  # fmt: skip
    for name, e in result.by_rule.items():
        print(f"{name}: {in_words(e.overall, e.ci95, e.n)}")
    print(f"wrote {result.save(args.out / 'credit.json')}")
    return 0


def credit_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo text credit", description=credit.__doc__)
    add = parser.add_argument
    _model_options(parser)
    add("--data", default="arithmetic:test", help="questions (default: %(default)s)")
    add("--limit", type=positive, default=150, help="questions (default: %(default)s)")
    add("--samples", type=positive, default=2, help="completions of each question (default: %(default)s)")
    add("--negative-prompt", default="wrong", help="wrong, empty, or a file with {question} (default: %(default)s)")
    add("--seed", type=seed, default=0, help="(default: %(default)s)")
    return parser


def run_study(argv: list[str]) -> int:
    """Train several arms with several seeds until each has sampled its budget, and pool their accuracy.

    A study that was stopped goes on.
    """
    args = study_parser().parse_args(argv)
    check_folder(args.out, "results.json", "table.md", "curves.png")
    require_trl()
    from t2i_gcpo.text import study, study_results

    spec = study.Spec.read(args.config)
    try:
        study.run(spec, args.out)
    except Terminated as end:
        print(f"{end.by}: stopped; the same command goes on with the study")
        return STATUS[end.by]
    results = study_results.write(spec, args.out)
    print(study_results.table(results))
    for name in (study_results.RESULTS, study_results.TABLE, study_results.CURVES):
        print(f"wrote {args.out / name}")
    return 0


def study_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo text study", description=run_study.__doc__)
    parser.add_argument(
        "--config",
        required=True,
        type=home_path,
        help="YAML of the study, such as configs/text_studies/arithmetic.yaml",
    )
    parser.add_argument("--out", required=True, type=home_path, help="folder to write to")
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    add: Any = parser.add_argument
    add("--model", default="text-mini", help="text-mini, a folder, or a repository of the hub (default: %(default)s)")
    add("--system", default="", help="system message (default: none)")
    add("--max-new-tokens", type=positive, default=48, help="(default: %(default)s)")
    add("--device", default="cpu", help="cpu, cuda, mps or auto (default: %(default)s)")
    add("--out", required=True, type=home_path, help="folder to write to")
