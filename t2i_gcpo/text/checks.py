"""Refuse what `GCPOTrainer` cannot work with, and say the reason.

That comes before the first step where it can be seen, else at the first rollout.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import datasets
from peft import PeftModel
from torch import Tensor, nn

from t2i_gcpo.text.negatives import NegativePrompt, check_different
from t2i_gcpo.text.rewards_by_name import check_scores

if TYPE_CHECKING:
    from t2i_gcpo.text.config import GCPOConfig


def check_arguments(args: Any, train_dataset: Any, options: dict[str, Any]) -> None:
    """Raise a ValueError for arguments that the credit cannot work with, and for data without prompts."""
    from t2i_gcpo.text.config import GCPOConfig

    if not isinstance(args, GCPOConfig):
        raise ValueError(
            f"args is a {type(args).__name__}; GCPOTrainer takes a GCPOConfig, which has all of GRPOConfig's options"
        )
    if args.credit != "uniform":
        for name in ("rollout_func", "environment_factory"):
            if options.get(name) is not None:
                raise ValueError(
                    f"{name} makes the prompts itself, so their negatives are not known; GCPOTrainer needs prompts "
                    "from the data set (or credit='uniform')"
                )
    check_columns(train_dataset)
    if args.dynamic_sampling_limit > 1:
        rows = args.per_device_train_batch_size * args.steps_per_generation
        if rows % args.num_generations:
            raise ValueError(
                f"dynamic sampling replaces whole groups, and a process's {rows} completions are no multiple of "
                f"num_generations={args.num_generations}; "
                "change per_device_train_batch_size, or set dynamic_sampling_limit=1"
            )
        if isinstance(train_dataset, datasets.IterableDataset):
            raise ValueError(
                "dynamic sampling draws further prompts by their number, which a streamed data set has not; set "
                "dynamic_sampling_limit=1"
            )


def check_columns(dataset: Any, needed: tuple[str, ...] = ("prompt",)) -> None:
    """Raise a ValueError for a data set that is empty or lacks a column."""
    if dataset is None:
        raise ValueError("there is no train_dataset; pass a data set with a column 'prompt'")
    columns = dataset.column_names
    missing = [name for name in needed if columns is not None and name not in columns]
    if missing:
        raise ValueError(
            f"the data set has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(sorted(columns)) or 'no column at all'}"
        )
    if "image" in (columns or ()) or "images" in (columns or ()):
        raise ValueError("the data set has images; GCPOTrainer is for text (for images there is `t2i-gcpo train`)")
    first_prompt(dataset)


def first_prompt(dataset: Any) -> Any:
    """Return the first row's prompt. ValueError where there is no row."""
    for row in dataset:
        return row["prompt"]
    raise ValueError("the data set is empty; it needs at least one prompt")


def check_first_prompt(args: GCPOConfig, dataset: Any, negative: NegativePrompt) -> None:
    """Raise a ValueError where the first prompt's negative is the same prompt."""
    if args.needs_contrast:
        prompt = first_prompt(dataset)
        check_different([prompt], [negative(prompt)])


def check_model(args: GCPOConfig, model: nn.Module, tokenizer: Any, dataset: Any) -> None:
    """Raise a ValueError for a model or tokenizer that the credit cannot work with."""
    if not isinstance(first_prompt(dataset), str) and tokenizer.chat_template is None:
        raise ValueError(
            "the prompts are chats, and the tokenizer has no chat template; set tokenizer.chat_template, or make "
            "the prompts plain texts"
        )
    if args.credit == "uniform":
        return
    learned = learned_positions(model)
    if learned:
        raise ValueError(
            f"the model has learned absolute positions ({learned}): the same completion after prompts of other "
            "lengths, or with other padding, gets "
            "other log-probs for that alone. GCPOTrainer needs relative positions (such as RoPE), or credit='uniform'"
        )
    dropout = active_dropout(model)
    if dropout and args.needs_contrast and not args.disable_dropout:
        raise ValueError(
            f"the model has dropout ({dropout}), and its noise would be the contrast; set disable_dropout=True in "
            "the config (and lora_dropout=0)"
        )


def learned_positions(model: nn.Module) -> str | None:
    """Return the name of a table of learned absolute positions, or None where the model has none."""
    config = base_model(model).config.get_text_config().to_dict()
    lengths = {config.get(name) for name in ("max_position_embeddings", "n_positions")} - {None}
    lengths |= {length + 2 for length in lengths}  # OPT and BART have two rows more
    words = base_model(model).get_input_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module is not words and module.num_embeddings in lengths:
            return name
    return None


def active_dropout(model: nn.Module) -> str | None:
    """Return the name of a dropout with a rate above 0, or None where the model has none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            return name
    rate = base_model(model).config.get_text_config().to_dict().get("attention_dropout") or 0.0
    return "attention_dropout" if rate > 0 else None


def base_model(model: Any) -> Any:
    """Return the transformers model, out of its LoRA wrapper where there is one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def check_lengths(model: Any, prompts: Sequence[Sequence[int]], completion: int | None) -> None:
    """Raise a ValueError where a prompt and the longest completion do not fit in the model's context."""
    context = base_model(model).config.get_text_config().to_dict().get("max_position_embeddings")
    longest = max(map(len, prompts))
    if context is not None and completion is not None and longest + completion > context:
        raise ValueError(
            f"a prompt (or negative prompt) has {longest} tokens, and max_completion_length is {completion}: more "
            "than the model's context of "
            f"{context}. Shorten the prompts or max_completion_length"
        )


def checked_reward(function: Any) -> Any:
    """Wrap a reward function so that a result that is no list is refused; anything else than a function stays.

    ValueError, at the call: the function returned None, a single number or a text.
    """
    if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
        return function

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        scores = function(*args, **options)
        check_scores(scores, function.__name__)
        return scores

    return call


def check_rewards(rewards: Tensor, names: list[str]) -> float:
    """Count the completions that no reward function could score. rewards [B, functions], NaN = not scored.

    ValueError: an infinite reward, or a batch in which nothing was scored.
    """
    for column, name in enumerate(names):
        if rewards[:, column].isinf().any():
            raise ValueError(
                f"the reward function {name!r} returned an infinite reward; rewards must "
                "be finite numbers (None: not scored)"
            )
    failed = rewards.isnan().all(dim=1)
    if failed.all():
        raise ValueError(
            f"the reward {', '.join(map(repr, names))} returned None or NaN for all {len(rewards)} completions; "
            "there is nothing to learn from"
        )
    return float(failed.sum())
