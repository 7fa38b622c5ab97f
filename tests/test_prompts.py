"""Prompt files, limits and the sampler."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from t2i_gcpo.commands.prompts import main
from t2i_gcpo.data.prompts import limit, read
from t2i_gcpo.data.sampler import PromptSampler
from t2i_gcpo.records import Prompt


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_geneval_rows_keep_their_clauses_and_lose_their_nulls(tmp_path: Path) -> None:
    rows = [
        {
            "tag": "colors",
            "include": [{"class": "ring", "count": 1, "color": "red", "position": None}],
            "prompt": "a red ring",
            "exclude": None,
        },
        {
            "tag": "counting",
            "include": [{"class": "star", "count": 2}],
            "exclude": [{"class": "star", "count": 3}],
            "prompt": "two stars",
        },
    ]
    prompts = read(write(tmp_path / "g.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n"))
    assert [p.text for p in prompts] == ["a red ring", "two stars"]
    assert [p.task for p in prompts] == ["colors", "counting"]
    assert prompts[0].metadata == {
        "tag": "colors",
        "include": [{"class": "ring", "count": 1, "color": "red"}],
        "prompt": "a red ring",
    }
    assert prompts[1].metadata == rows[1]


def test_other_formats(tmp_path: Path) -> None:
    assert read(write(tmp_path / "p.txt", "\ufeffa cat \n\n  a dog\n")) == [Prompt("a cat"), Prompt("a dog")]
    bench = read(
        write(tmp_path / "drawbench.csv", 'Prompts,Category\n"A red car, parked",Colors\nTwo\u2028dogs,Counting\n')
    )
    assert [(p.text, p.task) for p in bench] == [("A red car, parked", "Colors"), ("Two\u2028dogs", "Counting")]
    row = {"prompt": "a cat left of a dog", "task_type": "spatial", "nouns": ["cat", "dog"], "attr_nouns": None}
    lines = read(write(tmp_path / "t2i_r1.json", json.dumps(row) + "\n"))
    assert lines == read(write(tmp_path / "array.json", json.dumps([row], indent=1)))
    assert lines[0].task == "spatial" and lines[0].metadata["nouns"] == ["cat", "dog"]
    assert "attr_nouns" not in lines[0].metadata


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    odd = "a red\u2028car\u2029by\x85a\x0blake\x0c"
    assert [p.text for p in read(write(tmp_path / "p.txt", f"{odd}\r\na dog\n"))] == [odd.strip(), "a dog"]
    assert [p.text for p in read(write(tmp_path / "p.csv", f"prompt\n{odd}\n"))] == [odd.strip()]
    assert [p.text for p in read(write(tmp_path / "p.tsv", f"prompt\n{odd}\n"))] == [odd.strip()]
    row = json.dumps({"prompt": odd}, ensure_ascii=False)
    assert [p.text for p in read(write(tmp_path / "p.ndjson", f"{row}\n{row}\n"))] == [odd.strip()] * 2


def test_a_table_with_tabs_holds_its_cells_as_they_stand(tmp_path: Path) -> None:
    """PartiPrompts has a prompt that begins with a quote."""
    text = 'Prompt\tCategory\tNote\n"GIGGLE" painted on a wall\tArts\t\n\na 12" pizza, hot\tFood\tx\n'
    prompts = read(write(tmp_path / "parti.TSV", text))
    assert [(p.text, p.task) for p in prompts] == [('"GIGGLE" painted on a wall', "Arts"), ('a 12" pizza, hot', "Food")]
    assert prompts[0].metadata == {"prompt": '"GIGGLE" painted on a wall', "tag": "Arts"}


def test_a_cell_in_quotes_may_span_lines(tmp_path: Path) -> None:
    prompts = read(write(tmp_path / "a.csv", 'prompt,tag\n"a sign,\n""OPEN""",text\n\nx,y\n'))
    assert [(p.text, p.task) for p in prompts] == [('a sign,\n"OPEN"', "text"), ("x", "y")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": }\n', "line 2: not valid JSON"),
        ("a.jsonl", '{"prompt": "x"}\n\n{"text": "y"}\n', r'line 3: "prompt" is None.*Keys there: text'),
        ("a.jsonl", '{"prompt": "x", "include": [{"count": 1}]}\n', 'line 1: "include" is'),
        ("a.jsonl", '"x"\n', "line 1: expected an object"),
        ("a.json", "[{]", "line 1: not valid JSON"),
        ("a.csv", "text,kind\nx,y\n", "line 1: no column.*columns there: text, kind"),
        ("a.csv", "Prompts,Category\nx,y\n,z\n", "line 3: the column"),
        ("a.txt", " \n\n", "holds no prompts"),
        ("a.txt", "a cat\na \0dog\n", "line 2: a NUL"),
        ("a.txt", "a cat\na \x1b[31mdog\n", r"line 2: the prompt holds the control character '.x1b'"),
        ("a.prompts", "a cat\n", r"has the suffix '\.prompts'.*Name it \.txt"),
        ("prompts", "a cat\n", r"has the suffix '\(none\)'"),
        ("a.yaml", "- a cat\n", "has the suffix"),
        ("a.jsonl", '[{"prompt": "x"}]', "line 1: a JSON array.*Name it .json"),
        (
            "a.jsonl",
            '{"prompt": "x"}\n{"prompt": "\\ud83d a cat"}\n',
            r"line 2: a text holds half of a surrogate pair, '.ud83d'",
        ),
        ("a.jsonl", '{"prompt": "x", "tag": "\\udc00"}\n', "line 1: a text holds half"),
        ("a.json", '[{"prompt": "x"}, {"prompt": "\\ud83d"}]', "a text holds half"),
        ("a.ndjson", '{"prompt": "x", "weight": NaN}\n', "line 1: not valid JSON .NaN"),
        ("a.ndjson", '{"prompt": "x", "weight": 1e999}\n', "line 1: not valid JSON .Out of range"),
        ("a.jsonl", '{"prompt": "x", "prompt": "y"}\n', "line 1: .*'prompt' stands twice"),
        ("a.jsonl", '{"prompt": "x", "tag": ["a"]}\n', 'line 1: "tag" is'),
        ("a.jsonl", '{"prompt": "x", "a": ' + "[" * 100_000 + "\n", "line 1: not valid JSON .nested too deeply"),
        ("a.jsonl", '{"prompt": "x", "a": ' + "1" * 5000 + "}\n", "line 1: not valid JSON .Exceeds"),
        ("a.csv", 'prompt,tag\nx,a\n"a red car,colors\ntwo dogs,counting\n', "line 3: the row that begins here"),
        ("a.csv", 'prompt,tag\n"a red car,colors\n"two" dogs,counting\n', "line 2: the row that begins here"),
        ("a.csv", 'prompt\nx\n"' + "a red car\n" * 20_000, "line 3: the row that begins here.*field"),
        ("a.csv", "prompt,tag\nA red car, parked,colors\n", "line 2: the row has 3 cells, the header 2"),
        ("a.csv", "prompt,tag\nx,a\ny\n", "line 3: the row has 1 cells, the header 2"),
        ("a.csv", "prompt,Prompts\nx,y\n", 'line 1: the columns "prompt" and "Prompts"'),
        ("a.tsv", "a cat\tanimals\n", "line 1: no column"),
        ("a.tsv", 'Prompt\tCategory\n"a ""red"" car"\tColors\n', "line 2: the cell .* is in quotes"),
        ("a.tsv", "Prompt\tCategory\na car\n", "line 2: the row has 1 cells, the header 2"),
        ("a.jsonl", "", "holds no prompts"),
    ],
)
def test_bad_files_name_the_file_and_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(write(tmp_path / name, text))
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_and_a_binary_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="shapes:train"):
        read(tmp_path / "nothing.txt")
    (tmp_path / "image.txt").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="not a UTF-8"):
        read(tmp_path / "image.txt")


def tasks(**sizes: int) -> list[Prompt]:
    return [Prompt(f"{task} {k}", {"tag": task}) for task, size in sizes.items() for k in range(size)]


def test_limit_takes_tasks_in_equal_parts() -> None:
    prompts = tasks(a=100, b=10, c=2)
    chosen = limit(prompts, 12)
    # c has only 2 of its 4: the other 2 go to a and b.
    assert Counter(p.task for p in chosen) == {"a": 5, "b": 5, "c": 2}
    assert [p.text for p in chosen[:5]] == ["a 10", "a 30", "a 50", "a 70", "a 90"]
    assert len(set(chosen_texts := [p.text for p in chosen])) == 12 and chosen_texts == [
        p.text for p in limit(prompts, 12)
    ]
    assert Counter(p.task for p in limit(prompts, 4)) == {"a": 2, "b": 1, "c": 1}
    assert limit(prompts, None) == limit(prompts, 0) == limit(prompts, 1000) == prompts
    with pytest.raises(ValueError, match="-1"):
        limit(prompts, -1)


def test_sampler_is_balanced_and_uses_every_prompt_once_before_any_twice() -> None:
    sampler = PromptSampler(tasks(a=7, b=3), seed=0)
    drawn = sampler.draw(14)
    assert all({p.task for p in drawn[k : k + 2]} == {"a", "b"} for k in range(0, 14, 2))
    assert len({p.text for p in drawn if p.task == "a"}) == 7
    assert Counter(p.text for p in drawn if p.task == "b").most_common()[-1][1] == 2

    plain = PromptSampler(tasks(a=7, b=3), seed=0, balanced=False).draw(10)
    assert Counter(p.task for p in plain) == {"a": 7, "b": 3}


def test_sampler_goes_on_exactly_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    prompts = tasks(a=7, b=3, c=1)
    whole = PromptSampler(prompts, seed=3)
    whole.draw(5)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    resumed = PromptSampler(prompts, seed=99)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.draw(50) == whole.draw(50)
    assert PromptSampler(prompts, seed=3).draw(30) != PromptSampler(prompts, seed=4).draw(30)
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="not those of the run"):
        PromptSampler(prompts[:-1], seed=3).load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match="no prompts"):
        PromptSampler([], seed=0)


def test_command_writes_what_read_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "test.jsonl"
    assert main(["shapes:test", "--out", str(out)]) == 0
    assert read(out) == read("shapes:test")
    assert str(out) in capsys.readouterr().out
    assert main(["shapes:test", "--limit", "12", "--out", str(out)]) == 0
    assert set(Counter(p.task for p in read(out)).values()) == {2}
    assert main(["shapes:vocabulary", "--out", str(tmp_path / "words")]) == 0
    words = (tmp_path / "words").read_text().split()
    assert set(" ".join(p.text for p in read("shapes:train")).split()) <= set(words) == set(words)
    with pytest.raises(ValueError, match="shapes:tset"):
        read("shapes:tset")
    # A .txt would be read back as lines of text, a .csv as a table.
    for name in ("test.txt", "test.csv", "test"):
        with pytest.raises(ValueError, match=r"name a file that ends in .*\.jsonl"):
            main(["shapes:test", "--out", str(tmp_path / name)])
        assert not (tmp_path / name).exists()
