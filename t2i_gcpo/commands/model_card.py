"""The model card of an exported model: what it was trained from, on what, and what it scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from t2i_gcpo.utils.markup import one_line


def card(name: str, base: str, about: Mapping[str, Any]) -> str:
    """Return a README.md for a model whose provenance is `about`, as `export.provenance` gives it, its config by
    dotted names; {} says nothing.

    base: the name of the checkpoint that the training started from.
    """
    head = yaml.safe_dump({"base_model": base, "library_name": "transformers", "tags": ["t2i-gcpo"]}, sort_keys=True)
    lines = ["---", head.rstrip(), "---", "", f"# {one_line(name)}", ""]
    lines += [f"Fine-tuned from `{one_line(base)}` with t2i_gcpo; adapters are merged into the weights.", ""]
    if not about:
        return "\n".join([*lines, "The checkpoint lay in no run's folder, so nothing is known of its training."]) + "\n"
    config = about["config"]
    rows = {
        "algorithm": about.get("algorithm"),
        "seed": about.get("seed"),
        "step": about.get("step"),
        "images sampled": about.get("images_sampled"),
        "training prompts": config.get("prompts.train"),
        "reward": config.get("reward.name"),
    }
    lines += ["| training | |", "|---|---|", *(f"| {key} | {_value(value)} |" for key, value in rows.items()), ""]
    scores = about.get("scores", {})
    if scores:
        lines += ["| score | mean | 95 % interval | images | prompts |", "|---|---|---|---|---|"]
        lines += [_score(key, value) for key, value in scores.items()]
        lines.append("")
    return "\n".join([*lines, "The options of the run:", "", "```yaml", yaml.safe_dump(config).rstrip(), "```"]) + "\n"


def _value(value: Any) -> str:
    return "unknown" if value is None else one_line(str(value)).replace("|", "\\|")


def _score(name: str, value: Any) -> str:
    """Return the row of a score: a number, or an evaluation with its interval."""
    if not isinstance(value, Mapping):
        return f"| {name.replace('_', ' ')} | {value:.3f} | | | |"
    low, high = value["ci95"]
    mean = f"{value['overall']:.3f} | {low:.3f} to {high:.3f}"
    return f"| {name.replace('_', ' ')} | {mean} | {value['n']} | {_value(value['prompts'])} |"
