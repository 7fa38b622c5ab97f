"""What the text trainer refuses, and what it says then."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.text_models import TOKENIZER, Dataset, GCPOTrainer, GRPOConfig, digits, options, tiny_model, trainer
from t2i_gcpo import cli
from t2i_gcpo.text.config import GCPOConfig
from t2i_gcpo.text.data import read_rows
from t2i_gcpo.text.trl_version import require_trl


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"credit": "contrats"}, "credit is 'contrats'; allowed: contrast, uniform"),
        ({"divergence": "jsd"}, "divergence is 'jsd'; allowed: kl, abs, js, information_gain, exact_kl"),
        ({"normalization": "max"}, "normalization is 'max'; allowed: rank"),
        ({"top": 1.5}, "top is 1.5; it must be in"),
        ({"mass": 0.1}, "mass is 0.1; it must be below 1, and at least top"),
        ({"floor": -1.0}, "floor is -1.0; it must be at least 0"),
        ({"dynamic_sampling_limit": 0}, "dynamic_sampling_limit is 0"),
        ({"loss_type": "ppo"}, "loss_type is 'ppo'; allowed: dapo, grpo"),
        ({"importance_sampling_level": "sequence"}, "weights of mean 1 cancel"),
    ],
)
def test_options_out_of_range(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GCPOConfig(**options(tmp_path, **changes))


def test_sequence_ratios_are_allowed_where_credit_is_uniform(tmp_path: Path) -> None:
    assert GCPOConfig(**options(tmp_path, importance_sampling_level="sequence", credit="uniform")).credit == "uniform"


def make(
    folder: Path, data: Any = None, extra: Any = None, model: Any = None, reward: Any = digits, **changes: Any
) -> Any:
    return trainer(GCPOTrainer, folder, data=data, extra=extra, model=model, reward=reward, **changes)


def test_data_without_prompts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no column 'prompt'; it has answer"):
        make(tmp_path, Dataset.from_dict({"answer": ["1"]}))
    with pytest.raises(ValueError, match="the data set is empty"):
        make(tmp_path, Dataset.from_dict({"prompt": []}))
    with pytest.raises(ValueError, match="there is no train_dataset"):
        GCPOTrainer(tiny_model(), digits, GCPOConfig(**options(tmp_path)), processing_class=TOKENIZER)


def test_a_config_of_trl_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="args is a GRPOConfig; GCPOTrainer takes a GCPOConfig"):
        GCPOTrainer(tiny_model(), digits, GRPOConfig(**options(tmp_path)), make_data(), processing_class=TOKENIZER)  # type: ignore[arg-type]


def make_data() -> Dataset:
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": "1+1?"}]] * 4})


def test_negative_prompts_that_are_no_others(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 of 1 negative prompts equal their prompts"):
        make(tmp_path, extra={"negative_prompt": lambda prompt: prompt})


def test_a_later_prompt_that_equals_its_negative(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": text}] for text in ("1+1?", "Nothing.", "2+2?", "3+3?")]
    run = make(
        tmp_path, Dataset.from_dict({"prompt": chats}), max_steps=4,
        extra={"negative_prompt": lambda prompt: [{"role": "user", "content": "Nothing."}]},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"negative prompts equal their prompts .*'Nothing\.'"):
        run.train()


def test_a_function_of_ones_own_makes_the_negative_prompts(tmp_path: Path) -> None:
    seen: list[Any] = []

    def negative(prompt: Any) -> Any:
        seen.append(prompt)
        return [{"role": "user", "content": "Nothing."}]

    make(tmp_path, extra={"negative_prompt": negative}, max_steps=1).train()
    assert len(seen) > 8


def test_custom_rollouts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rollout_func makes the prompts itself"):
        make(tmp_path, extra={"rollout_func": lambda prompts, trainer: {}})


def test_chats_need_a_chat_template(tmp_path: Path) -> None:
    from t2i_gcpo.pretrain.text.model import tokenizer

    plain = tokenizer()
    plain.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        GCPOTrainer(tiny_model(), digits, GCPOConfig(**options(tmp_path)), make_data(), processing_class=plain)


def test_learned_positions(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), n_positions=64, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match=r"learned absolute positions \(transformer.wpe\)"):
        make(tmp_path, model=model)
    assert make(tmp_path, model=model, credit="uniform").args.credit == "uniform"


def test_dropout_would_be_the_contrast(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"the model has dropout \(attention_dropout\)"):
        make(tmp_path, model=model)


def test_prompts_beyond_the_context(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_completion_length is 250: more than the model's context of 256"):
        make(tmp_path, max_completion_length=250).train()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda completions, **_: [None] * len(completions), "returned None or NaN for all 8 completions"),
        (lambda completions, **_: [float("nan")] * len(completions), "returned None or NaN for all 8 completions"),
        (lambda completions, **_: [float("inf")] * len(completions), "returned an infinite reward"),
        (lambda completions, **_: [1.0], "returned 1 rewards, but 8 were expected"),
        (lambda completions, **_: None, "'<lambda>' returned 'None'; it must return a list with one number"),
        (lambda completions, **_: 0.5, "'<lambda>' returned '0.5'; it must return a list with one number"),
    ],
    ids=["none", "nan", "infinite", "count", "nothing", "number"],
)
def test_rewards_that_are_none(tmp_path: Path, reward: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, reward=reward).train()


def test_an_evaluation_refuses_a_reward_that_returns_nothing() -> None:
    from t2i_gcpo.text.evaluate import evaluate

    row = {"prompt": [{"role": "user", "content": "1+1?"}], "answer": "2", "task": "t"}
    with pytest.raises(ValueError, match="'mine' returned 'None'; it must return a list with one number"):
        evaluate(tiny_model(), TOKENIZER, [row], lambda **_: None, max_new_tokens=2, reward_name="mine")  # type: ignore[arg-type, return-value]


def test_a_few_completions_without_reward_are_counted(tmp_path: Path) -> None:
    def some(completions: list[Any], **_: Any) -> list[float | None]:
        return [None, *map(float, range(len(completions) - 1))]

    run = make(tmp_path, reward=some, max_steps=1)
    run.train()
    assert run.state.log_history[0]["rewards/failed"] == 1
    assert all(torch.isfinite(value).all() for value in run.model.parameters())


@pytest.mark.parametrize("version", ["1.15.0", "2.0.0"])
def test_another_trl_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(ImportError, match=rf"needs trl>=1.16,<2, and TRL {version} is installed: pip install"):
        require_trl()


def test_a_missing_trl_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match=r"pip install 't2i-gcpo\[text\]'"):
        require_trl()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question": "3+4="}', "row 2: it has no answer"),
        ('{"question": "3+4=", "answer": null}', "row 2: it has no answer"),
        ('{"question": "3+4=", "answer": ""}', "row 2: it has no answer"),
        ('{"answer": "7"}', "row 2: it has no question"),
    ],
)
def test_a_row_without_its_question_or_answer_is_refused(tmp_path: Path, row: str, message: str) -> None:
    """An absent answer would be compared with as the text "None"."""
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"question": "1+2=", "answer": "3"}}\n{row}\n')
    with pytest.raises(ValueError, match=message):
        read_rows(str(file))
    file.write_text('{"question": "1+2=", "answer": 0}\n')
    assert read_rows(str(file))[0]["answer"] == "0"


def test_a_heatmap_of_no_question_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["text", "heatmap", "--prompt", " ", "--out", str(tmp_path / "out")]) == 2
    assert "--prompt is empty" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["train"], ["study", "--config", "x.yaml", "--out", "out"]], ids=" ".join)
def test_the_commands_that_train_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert cli.main(["text", *command]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "TRL, which is not installed: pip install 't2i-gcpo[text]'" in line
