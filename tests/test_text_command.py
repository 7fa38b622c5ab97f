"""`t2i-gcpo text train|eval` as they are called, and the data and rewards that they read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from helpers.text_models import tiny_folder
from t2i_gcpo import cli
from t2i_gcpo.text.data import read_rows
from t2i_gcpo.text.math_answers import math_reward
from t2i_gcpo.text.options import parse
from t2i_gcpo.text.rewards_by_name import load_reward

CONFIGS = Path(__file__).parents[1] / "configs"


def small(folder: Path) -> list[str]:
    """Arguments that make the arithmetic config a run of seconds."""
    return [
        "--config", str(CONFIGS / "text_arithmetic.yaml"), "--model", str(tiny_folder()), "--output-dir", str(folder),
        "--max-steps", "2", "--per-device-train-batch-size", "8", "--num-generations", "4",
        "--max-completion-length", "6", "--eval-limit", "4", "--data-limit", "20", "--heatmap-every", "0",
        "--disable-tqdm", "true",
    ]  # fmt: skip


@pytest.fixture
def graded(tmp_path: Path) -> str:
    """A reward that differs from completion to completion, as a file's function."""
    path = tmp_path / "graded.py"
    path.write_text(
        "def score(completions, **_):\n    return [float(len(text[0]['content'])) if isinstance(text, list) else "
        "float(len(text)) for text in completions]\n"
    )
    return f"{path}:score"


def test_train_resume_and_what_the_folder_holds(
    tmp_path: Path, graded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    argv = ["text", "train", *small(folder), "--reward", graded, "--save-strategy", "steps", "--save-steps", "1"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "arithmetic:test" in out and f"wrote {folder / 'model'}" in out
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2]
    assert json.loads((folder / "eval.json").read_text())["n"] == 4
    options = yaml.safe_load((folder / "config.yaml").read_text())
    assert (
        options["max_steps"] == 2 and options["negative_prompt"] == "wrong" and "per_device_train_batch_size" in options
    )
    assert cli.main(argv) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert cli.main([*argv, "--resume", "true", "--max-steps", "3"]) == 0
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 3]
    assert (
        cli.main(
            [
                "text",
                "eval",
                "--model",
                str(folder / "model"),
                "--limit",
                "4",
                "--max-new-tokens",
                "4",
                "--out",
                str(tmp_path / "e"),
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "e" / "eval.json").read_text())["by_task"].keys() == {
        "2 numbers",
        "3 numbers",
        "4 numbers",
    }


def test_a_budget_of_completions_ends_a_run(tmp_path: Path, graded: str) -> None:
    argv = [
        *small(tmp_path / "run"),
        "--reward",
        graded,
        "--max-steps",
        "9",
        "--max-completions",
        "10",
        "--eval-data",
        "",
    ]
    assert cli.main(["text", "train", *argv]) == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 2  # 8 completions an update
    assert cli.main(["text", "train", *argv, "--resume"]) == 2


def test_a_wrong_option_gets_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("learning_rat: 1\n")
    assert cli.main(["text", "train", "--config", str(tmp_path / "c.yaml")]) == 2
    assert "c.yaml: there is no option 'learning_rat'; did you mean learning_rate?" in capsys.readouterr().err
    assert cli.main(["text", "train", "--credits", "uniform"]) == 2
    assert "the command line: there is no option 'credits'; did you mean credit?" in capsys.readouterr().err
    assert cli.main(["text", "frain"]) == 2
    assert "allowed: train, eval, heatmap" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("text_*.yaml")), ids=lambda path: path.name)
def test_configs_parse_and_print_as_themselves(path: Path, tmp_path: Path) -> None:
    _, config, text = parse(["--config", str(path), "--use-cpu", "--bf16", "false"])
    assert config.learning_rate == yaml.safe_load(text)["learning_rate"] > 0
    (tmp_path / "again.yaml").write_text(text)
    assert parse(["--config", str(tmp_path / "again.yaml")])[2] == text


def test_rows_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "gsm.jsonl"
    path.write_text('{"question": "2 and 3?", "answer": "2 + 3 = 5\\n#### 5"}\n{"question": "1?", "answer": "1"}\n')
    rows = read_rows(str(path), system="Think.")
    assert [row["answer"] for row in rows] == ["5", "1"]
    assert rows[0]["prompt"] == [{"role": "system", "content": "Think."}, {"role": "user", "content": "2 and 3?"}]
    assert len(read_rows(str(path), limit=1)) == 1


def test_data_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data is 'arithmetic:dev'; allowed: arithmetic:train"):
        read_rows("arithmetic:dev")
    with pytest.raises(ValueError, match="there is no file"):
        read_rows(str(tmp_path / "none.jsonl"))
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match="no column prompt or question or problem, no column answer; it has text"):
        read_rows(str(tmp_path / "x.jsonl"))
    with pytest.raises(ValueError, match="NAME:SPLIT"):
        read_rows("gsm8k")
    with pytest.raises(ValueError, match="limit is -1"):
        read_rows("arithmetic:val", limit=-1)


def test_the_math_reward_compares_mathematics() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed (pip install 't2i-gcpo[text]')")
    texts = [r"So it is \boxed{\frac{1}{2}}.", "The answer is 0.5", "I get 2", "no idea"]
    assert math_reward(texts, ["1/2"] * 4) == [1, 1, 0, 0]
    assert math_reward([[{"role": "assistant", "content": "She has $72$ apples."}]], ["72"]) == [1]


def test_rewards_by_name() -> None:
    with pytest.raises(ValueError, match="reward is 'maths'; allowed: arithmetic, math, or your own"):
        load_reward("maths")


def test_the_embedded_model_is_a_start_with_headroom() -> None:
    from t2i_gcpo.text.evaluate import evaluate
    from t2i_gcpo.text.models import load

    model, tokenizer = load("text-mini")
    rows = read_rows("arithmetic:test", limit=120)
    result = evaluate(model, tokenizer, rows, load_reward("arithmetic"))
    assert 0.35 < result.overall < 0.65
    again = evaluate(model, tokenizer, rows, load_reward("arithmetic"))
    assert [row.completion for row in again.rows] == [row.completion for row in result.rows]
    assert sum(parameter.numel() for parameter in model.parameters()) * 4 < 10e6
