"""Small made-up benchmark files in the official columns; the official files' own counts are numbers of the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from t2i_gcpo.commands.options import arguments
from t2i_gcpo.data import benchmark_files, formats
from t2i_gcpo.evaluation.benchmarks.table import BENCHMARKS, find

DPG_HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)
SAMPLES = {
    "geneval": (
        "evaluation_metadata.jsonl",
        '{"tag": "single_object", "include": [{"class": "star", "count": 1}], "prompt": "a photo of a star"}\n'
        '{"tag": "counting", "include": [{"class": "ring", "count": 2}], "exclude": [{"class": "ring", "count": 3}], '
        '"prompt": "a photo of two rings"}\n',
    ),
    "dpg": (
        "dpg_bench.csv",
        f"{DPG_HEADER}\n"
        '0,"A brown dog, asleep",,1,0,entity,whole,entity - whole (dog),Is there a dog?\n'
        '0,"A brown dog, asleep",,2,1,attribute,color,"attribute - color (dog, brown)",Is the dog brown?\n'
        '0,"A brown dog, asleep",,3,"1, 2",global,,global - (photo),Is it a photo?\n'
        "coco7,Two cats,,1,0,entity,whole,entity - whole (cats),Are there cats?\n",
    ),
    "compbench": ("color_val.txt", "a green bench and a blue bowl\r\na red bear and a brown train\r\n"),
    "drawbench": (
        "drawbench_data.csv",
        '"Prompts","Category"\n"A red car.","Colors"\n"A sign that says ""Hi, you"".","Text "\n',
    ),
    "parti": (
        "PartiPrompts.tsv",
        "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\ta note\n"
        '"G O" in red paint\tIllustrations\tWriting & Symbols\t\n',
    ),
    "ocr": (
        "ocr_len_buckets.csv",
        'index,prompt_raw,target_text,length,level\n00000,"A runway, ""Spring 24""",Spring 24,8,Easy\n',
    ),
}


def write(folder: Path, name: str) -> Path:
    file, text = SAMPLES[name]
    path = folder / file
    path.write_bytes(text.encode())
    return path


def test_what_is_read(tmp_path: Path) -> None:
    read = {name: BENCHMARKS[name].read(write(tmp_path, name)) for name in BENCHMARKS}
    texts = {name: [(prompt.text, prompt.task) for prompt in prompts] for name, prompts in read.items()}
    assert texts == {
        "geneval": [("a photo of a star", "single_object"), ("a photo of two rings", "counting")],
        "dpg": [("A brown dog, asleep", "all"), ("Two cats", "all")],
        "compbench": [("a green bench and a blue bowl", "color"), ("a red bear and a brown train", "color")],
        "drawbench": [("A red car.", "Colors"), ('A sign that says "Hi, you".', "Text")],
        "parti": [("bond", "Abstract"), ('"G O" in red paint', "Illustrations")],
        "ocr": [('A runway, "Spring 24"', "Easy")],
    }
    assert read["geneval"][1].metadata["exclude"] == [{"class": "ring", "count": 3}]
    assert read["ocr"][0].metadata["text"] == "Spring 24"
    assert read["parti"][1].metadata["challenge"] == "Writing & Symbols"
    assert read["dpg"][0].metadata == {
        "prompt": "A brown dog, asleep",
        "item_id": "0",
        "questions": [
            {"id": 1, "question": "Is there a dog?", "parents": [0], "category": "entity"},
            {"id": 2, "question": "Is the dog brown?", "parents": [1], "category": "attribute"},
            {"id": 3, "question": "Is it a photo?", "parents": [1, 2], "category": "global"},
        ],
    }


def test_the_official_counts() -> None:
    """The counts are these readers' on the versions that the table names; DPG-Bench's prompts/*.txt were counted."""
    assert {name: benchmark.prompts for name, benchmark in BENCHMARKS.items()} == {
        "geneval": 553,
        "dpg": 1065,
        "compbench": 8 * 300,
        "drawbench": 200,
        "parti": 1632,
        "ocr": 1018,
    }
    assert {name: benchmark.images for name, benchmark in BENCHMARKS.items()} == {
        "geneval": 4,
        "dpg": 4,
        "compbench": 10,
        "drawbench": 1,
        "parti": 1,
        "ocr": 1,
    }
    assert set(BENCHMARKS) == set(benchmark_files.READERS)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("other", SAMPLES)
def test_a_file_of_another_benchmark_is_refused_with_its_first_line(tmp_path: Path, name: str, other: str) -> None:
    path = write(tmp_path, other)
    if name == other:
        assert BENCHMARKS[name].read(path)
        return
    with pytest.raises(ValueError) as caught:
        BENCHMARKS[name].read(path)
    first = SAMPLES[other][1].split("\n")[0].strip()
    shown = "" if name == "compbench" else repr(first[:120])  # T2I-CompBench's files are told by their names
    assert path.name in str(caught.value) and shown in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("geneval", '{"tag": "shapes", "include": [{"class": "a"}], "prompt": "b"}', "one of GenEval's tasks"),
        ("geneval", '{"tag": "colors", "include": [], "prompt": "b"}', "one of GenEval's tasks"),
        ("geneval", '{"tag": "colors", "include": [{"count": 1}], "prompt": "b"}', "with its clauses"),
        ("geneval", '{"prompt": "b"}', 'the keys tag, include and prompt; found \'{"prompt": "b"}\''),
        ("geneval", "", "holds no prompts"),
        ("dpg", f"{DPG_HEADER}\n0,a,,one,0,,,entity (a),Is it?\n", "proposition_id is 'one'"),
        (
            "dpg",
            f"{DPG_HEADER}\n0,a,,1,0,,,entity (a),Is it?\n0,a,,1,0,,,entity (a),Is it?\n",
            "proposition_id 1 twice",
        ),
        ("dpg", f"{DPG_HEADER}\n0,a,,1,0,,,entity (a),Is it?\n0,b,,2,0,,,entity (a),Is it?\n", "another text"),
        ("dpg", f"{DPG_HEADER}\n0,a,,1,0,,,entity (a),\n", "line 2: DPG-Bench's dpg_bench.csv has 9 cells"),
        ("compbench", "a red bear\tcolor\n", "expected one prompt a line"),
        (
            "drawbench",
            "Prompts,Category\na red car,\n",
            "line 2: DrawBench's csv has 2 cells a row and a value for each",
        ),
        ("drawbench", "Prompts,Category\na red car, a bus,Colors\n", "2 cells a row.*this row has 3"),
        (
            "parti",
            "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\n",
            "line 2: PartiPrompts.tsv has 4 cells.*this row has 2",
        ),
        ("ocr", "index,prompt_raw,target_text\n0,a,b\n", "with the columns prompt_raw, target_text, level"),
    ],
)
def test_rows_that_are_damaged(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / SAMPLES[name][0]
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        BENCHMARKS[name].read(path)


def test_a_folder_of_the_official_files(tmp_path: Path) -> None:
    write(tmp_path, "geneval")
    assert len(BENCHMARKS["geneval"].read(tmp_path)) == 2
    with pytest.raises(FileNotFoundError, match=r"has no color_val\.txt, shape_val\.txt"):
        BENCHMARKS["compbench"].read(tmp_path)
    for file in BENCHMARKS["compbench"].files:
        (tmp_path / file).write_text(f"a prompt of {file}\n")
    read = BENCHMARKS["compbench"].read(tmp_path)
    assert [prompt.task for prompt in read] == list(benchmark_files.COMPBENCH_CATEGORIES)
    (tmp_path / "new_objects.txt").write_text("bottle - bottles\n")
    with pytest.raises(ValueError, match=r"new_objects\.txt is none of T2I-CompBench's files"):
        BENCHMARKS["compbench"].read(tmp_path / "new_objects.txt")
    with pytest.raises(ValueError, match="unknown benchmark 'coco'; available: geneval, dpg"):
        find("coco")


def test_dpg_draws_the_texts_of_its_prompt_folder(tmp_path: Path) -> None:
    """The benchmark asks to draw prompts/*.txt; the csv has the questions."""
    path = write(tmp_path, "dpg")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "0.txt").write_text("A brown dog, fast asleep.\n")
    with pytest.raises(ValueError, match=r"has no coco7\.txt"):
        BENCHMARKS["dpg"].read(path)
    (tmp_path / "prompts" / "coco7.txt").write_text("Two cats.")
    assert [prompt.text for prompt in BENCHMARKS["dpg"].read(path)] == ["A brown dog, fast asleep.", "Two cats."]


# -- formats and columns that are named --------------------------------------------------------------------------------


def test_a_format_that_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "parti").rename(tmp_path / "prompts.data")
    assert [prompt.text for prompt in formats.read(path, format="parti")] == ["bond", '"G O" in red paint']
    lines = formats.read(path, format="lines")
    assert len(lines) == 3 and lines[0].text == "Prompt\tCategory\tChallenge\tNote"


@pytest.mark.parametrize(
    ("file", "text", "metadata"),
    [
        ("a.tsv", "caption\ttag\tsize\na red star\tcolors\t\n", {"caption": "a red star", "tag": "colors"}),
        ("a.csv", 'caption,tag\n"a red star",colors\n', {"caption": "a red star", "tag": "colors"}),
        ("a.jsonl", json.dumps({"caption": "a red star", "tag": None, "n": 3}), {"caption": "a red star", "n": 3}),
    ],
)
def test_a_column_that_is_named(tmp_path: Path, file: str, text: str, metadata: dict[str, Any]) -> None:
    (tmp_path / file).write_text(text)
    (prompt,) = formats.read(tmp_path / file, column="caption")
    assert prompt.text == "a red star" and prompt.metadata == {**metadata, "prompt": "a red star"}


@pytest.mark.parametrize(
    ("file", "text", "options", "message"),
    [
        ("a.tsv", "a\tb\n1\t2\n", {"column": "text"}, "no column 'text'; columns there: a, b"),
        ("a.tsv", "a\tb\n1\n", {"column": "a"}, "line 2: the row has 1 cells, the header 2 names"),
        ("a.csv", "a,b\n1,2,3\n", {"column": "a"}, "line 2: the row has 3 cells"),
        ("a.csv", "a,b\n,2\n", {"column": "a"}, "line 2: the column 'a' is empty"),
        ("a.jsonl", '{"a": 3}', {"column": "a"}, "line 1: the column 'a' is 3"),
        ("a.jsonl", "{a", {"column": "a"}, "line 1: not valid JSON"),
        ("a.jsonl", "[1]", {"column": "a"}, "line 1: expected an object"),
        ("a.txt", "a red star", {"column": "a"}, "a column can be named for .csv, .tsv, .jsonl"),
        ("a.csv", "a\n", {"column": "a"}, "holds no prompts"),
        ("a.csv", "a\nb\n", {"column": "a", "format": "parti"}, "name one of them"),
        ("a.csv", "a\nb\n", {"format": "table"}, "prompts.format is 'table'; allowed: auto, geneval, dpg"),
    ],
)
def test_what_is_named_must_be_there(
    tmp_path: Path, file: str, text: str, options: dict[str, Any], message: str
) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        formats.read(tmp_path / file, **options)


def test_shapes_have_no_format() -> None:
    with pytest.raises(ValueError, match="neither for shapes:"):
        formats.read("shapes:val", format="geneval")
    assert formats.read("shapes:val")
    with pytest.raises(FileNotFoundError):
        formats.read("nowhere.tsv", column="a")


def test_a_run_reads_its_files_by_the_format_that_is_named(tmp_path: Path) -> None:
    """Its splits of ShapeScenes are read as ever."""
    config = arguments.parse(
        ["--prompts.train", str(write(tmp_path, "ocr")), "--prompts.format", "ocr"]
    ).settings.prompts
    assert config.format == "ocr" and config.column is None
    (prompt,) = formats.read_named(config.train, format=config.format, column=config.column)
    assert prompt.metadata["text"] == "Spring 24"
    assert formats.read_named(config.validation, format=config.format, column=config.column) == formats.read(
        "shapes:val"
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_a_prompt_knows_its_line(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    last = BENCHMARKS[name].read(path)[-1]
    assert last.source == ("" if name == "dpg" else f"{path}, line {len(SAMPLES[name][1].splitlines())}")
