"""Run folders of somebody else: nothing of this machine gets into a page, no name becomes markup.

And damage is a sentence.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from PIL import Image

from helpers import run_folders
from t2i_gcpo import cli
from t2i_gcpo.evaluation.evaluate import EvalResult
from t2i_gcpo.reports import comparison, curves, group_pairs, image_folders, run_files, run_report, tables
from t2i_gcpo.reports import run as run_folder
from t2i_gcpo.training.callbacks.reward_hacking import WARNINGS, read_warnings
from t2i_gcpo.training.tracker import read_metrics
from t2i_gcpo.utils import markup

SECRET = b"-----BEGIN OPENSSH PRIVATE KEY-----"
IMAGE = "![x](http://evil.example/p.png)<img src=http://evil.example/q.png>"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one real picture, beside files that are none of its business."""
    path = run_folders.write(tmp_path / "run")
    (path / "samples").mkdir()
    Image.new("RGB", (4, 4), (10, 200, 30)).save(path / "samples" / "step_000001_samples.png")
    (tmp_path / "id_rsa").write_bytes(SECRET)
    Image.new("RGB", (4, 4), (250, 1, 2)).save(tmp_path / "private.png")
    return path


def embedded(run: Path) -> list[bytes]:
    """The pictures in the report, as they are in it. Without metrics, so that no curves are drawn."""
    (run / "metrics.jsonl").write_text("", encoding="utf-8")
    text = run_report.write(run).read_text(encoding="utf-8")
    return [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", text)]


def own(run: Path) -> bytes:
    return (run / "samples" / "step_000001_samples.png").read_bytes()


def warn(run: Path, picture: Any) -> None:
    row = {"step": 1, "metric": "entropy", "text": "it fell", "picture": picture}
    (run / WARNINGS).write_text(json.dumps(row) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", ["id_rsa", "private.png"])
def test_a_warning_names_no_file_outside_the_run(run: Path, tmp_path: Path, name: str) -> None:
    for picture in (
        str(tmp_path / name),
        f"../{name}",
        f"samples/../../{name}",
        f"watch/../samples/../../{name}",
        "\0",
        "x" * 5000,
    ):
        warn(run, picture)
        assert embedded(run) == [own(run)], picture
        assert "it fell" in (run / "report.html").read_text(encoding="utf-8")
    warn(run, "samples/step_000001_samples.png")
    assert embedded(run) == [own(run)] * 2


def test_links_out_of_the_run_are_not_followed(run: Path, tmp_path: Path) -> None:
    (run / "samples" / "step_000002_samples.png").symlink_to(tmp_path / "private.png")
    (run / "samples" / "before_after.png").symlink_to(tmp_path / "id_rsa")
    (run / "watch").symlink_to(tmp_path)
    (run / "heatmaps").mkdir()
    (run / "heatmaps" / "step_000001.png").symlink_to("/etc/hostname")
    (run / "heatmaps" / "step_000003.png").symlink_to(run / "heatmaps" / "step_000003.png")
    warn(run, "watch/private.png")
    assert embedded(run) == [own(run)]
    assert "Left out: 3 pictures that are no whole PNG inside the run." in (run / "report.html").read_text(
        encoding="utf-8"
    )
    link = tmp_path / "link"
    link.symlink_to(run)
    assert len(embedded(link)) == 1, "the folder itself may be a link"


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "eval_before.json", "warnings.jsonl"])
def test_a_run_s_own_files_are_no_links_either(run: Path, tmp_path: Path, name: str) -> None:
    """A YAML file of this machine would stand in the report under "all options"."""
    (tmp_path / "outside").write_text("password: hunter2\n", encoding="utf-8")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match=rf"{name} is a link to a file outside the run"):
        run_report.write(run)


def test_only_whole_pngs_are_shown(run: Path) -> None:
    samples = run / "samples"
    (samples / "step_000002_samples.png").write_bytes(SECRET)
    (samples / "step_000003_samples.png").write_bytes(own(run)[:60])
    Image.new("RGB", (4, 4)).save(samples / "step_000004_samples.png", format="JPEG")
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (samples / "step_000005_samples.png").write_bytes(bomb)
    (samples / "step_000006_samples.png").mkdir()
    os.mkfifo(samples / "step_000007_samples.png")
    for name in ("step_²_samples.png", "step_x.png", "step_.png", f"step_{'9' * 50}.png"):
        (samples / name).write_bytes(own(run))
    assert [path.name for path in run_files.steps(run, "samples", ".png")] == ["step_000001_samples.png"]
    assert embedded(run) == [own(run)]


def test_a_token_in_an_old_config_is_not_shown(run: Path) -> None:
    with (run / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("reward: {name: remote, url: http://x, token: hunter2}\n")
    text = (run / "config.yaml").read_text(encoding="utf-8").replace("reward:\n  name: geneval\n", "")
    (run / "config.yaml").write_text(text, encoding="utf-8")
    (run / "metrics.jsonl").write_text("", encoding="utf-8")
    assert "hunter2" not in run_report.write(run).read_text(encoding="utf-8")


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_become_no_markup(tmp_path: Path) -> None:
    hostile = run_folders.write(tmp_path / "a![x](y)`|<b>", algorithm="gcpo")
    config = (hostile / "config.yaml").read_text(encoding="utf-8")
    (hostile / "config.yaml").write_text(config.replace("name: gcpo", f"name: {json.dumps(IMAGE)}"), encoding="utf-8")
    plain = run_folders.write(tmp_path / "plain")
    out = tmp_path / "out"
    assert cli.main(["compare", "--runs", str(hostile), str(plain), "--out", str(out)]) == 0
    page, table = (out / "report.html").read_text(encoding="utf-8"), (out / "table.md").read_text(encoding="utf-8")
    assert "<img src=http" not in page and "&lt;img src=http://evil.example" in page
    assert r"\![x\](http://evil.example/p.png)\<img src=http" in table and r"a\![x\](y)\`\|\<b\>" in table
    assert not re.search(r"(?<!\\)!\[|(?<!\\)\]\(|(?<!\\)<", table)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    columns = [len(re.findall(r"(?<!\\)\|", row)) - 1 for row in rows]  # of the table of runs, then of the pairs
    assert columns == [len(comparison.COLUMNS)] * 4 + [len(group_pairs.HEADER)] * 3


@pytest.mark.parametrize(
    "text",
    [
        IMAGE,
        "a\n| b | c |\n",
        "[a](b) [a][b] [a]: c",
        "`x` <script>",
        "\x1b[31mred\x07",
        "www.evil.example",
        "https://evil.example",
        "_a_ *b* ~~c~~ $$d$$ # e",
        "\u2028x",
    ],
)
def test_texts_are_shown_as_they_are(text: str) -> None:
    """By Markdown's own rules: in a sentence the text comes out again as it went in, without an element around any of
    it; a table's cell may have emphasis, and no link, picture, code, HTML or cell of its own.
    """
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    flat = markup.one_line(text)
    assert "\n" not in flat and "\x1b" not in flat
    shown = reader.renderInline(f"before {markup.inline(text)} after")
    assert html.unescape(shown) == f"before {flat} after"
    assert not re.search(r"://|www\.", markup.inline(text)), "readers that make links of bare addresses find none"
    cells = re.findall(r"<td>(.*?)</td>", reader.render(tables.markdown(["name", "b"], [[text, "x"]])), flags=re.DOTALL)
    assert len(cells) == 2
    bare = re.sub(r"</?(em|strong|s)>", "", cells[0])
    assert html.unescape(bare) == re.sub(r"(?<!\w)[_*]|[_*](?!\w)|~~", "", flat).strip()
    assert not re.search(r"<\w", bare)


def test_plain_names_stay_readable() -> None:
    for name in ("gcpo_seed_1", "0.512 [0.470, 0.555]", "runs/quickstart", "a (b), c"):
        assert markup.cell(name) == name
    assert markup.inline("gcpo_seed_1 at 0.5") == "gcpo_seed_1 at 0.5"
    assert tables.markdown(["a|b"], [["c\nd"]]) == "| a\\|b |\n| --- |\n| c d |\n"


def test_names_with_dollars_are_no_formulas(run: Path, tmp_path: Path) -> None:
    """matplotlib reads what stands between dollar signs as TeX, and fails over what is none."""
    figure = curves.draw(
        {r"a $\nothing{$": [run_folder.read(run)], "b": [run_folder.read(run_folders.write(tmp_path / "b"))]}
    )
    assert b"nothing" in curves.svg(figure)


def test_an_error_on_the_page_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = pytest.importorskip("gradio")
    from t2i_gcpo.demo.errors import with_user_errors
    from t2i_gcpo.demo.tabs.runs import status_line

    def fail() -> None:
        raise ValueError(f"{IMAGE} is no run")

    with pytest.raises(gradio.Error) as error:
        with_user_errors(fail)()
    assert "<" not in str(error.value.message) and "&lt;img" in str(error.value.message)
    named = run_folder.Run(Path("x"), {"steps": IMAGE}, [], None, None)
    shown = status_line({IMAGE: named})
    assert "![" not in shown and "](" not in shown and "<" not in shown


# -- damage ------------------------------------------------------------------------------------------------------------

WRONG = ["null", "[]", "{}", "7", '"x"', "{", "", "[" * 100_000, "\xff"]


@pytest.mark.parametrize("name", ["eval_before.json", "eval_after.json"])
@pytest.mark.parametrize("content", [*WRONG, '{"images": []}', '{"images": [{"index": "a"}]}'])
def test_an_evaluation_of_the_wrong_shape(run: Path, name: str, content: str) -> None:
    (run / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=name):
        run_folder.read(run)
    assert cli.main(["compare", "--runs", str(run), "--out", str(run.parent / "out")]) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", None),
        ("guidance", "much"),
        ("guidance", -1.0),
        ("top_k", 0.5),
        ("temperature", []),
        ("checkpoint", 3),
        ("images", []),
        ("images", None),
        ("unmasking", {"steps": 0}),
        ("unmasking", {"pace": 1}),
        ("unmasking", []),
        ("held_out", {"x": {}}),
        ("held_out", {"x": {"scores": [1, 2]}}),
        ("held_out", []),
        ("top_p", 7.0),
    ],
)
def test_every_value_of_an_evaluation_is_checked(run: Path, key: str, value: Any) -> None:
    path = run / "eval_after.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), key: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"eval_after\.json"):
        EvalResult.load(path)


@pytest.mark.parametrize(
    "row",
    [
        "null",
        "[]",
        "{}",
        "7",
        '{"step": null}',
        '{"step": 1.5}',
        '{"step": 1, "kl": "x"}',
        '{"step": 1, "kl": [1]}',
        '{"step": 1, "kl": {}}',
        '{"step": 1' + "0" * 400 + "}",
        '{"step": "²"}',
    ],
)
def test_a_row_of_metrics_of_the_wrong_shape(run: Path, row: str) -> None:
    path = run / "metrics.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + row + "\n" + '{"step": 5}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.jsonl"):
        read_metrics(run)
    assert cli.main(["compare", "--runs", str(run), "--out", str(run.parent / "out")]) == 2


@pytest.mark.parametrize(
    "row",
    [
        "null",
        "[]",
        "{}",
        '{"step": 1, "metric": "a", "text": "b"}',
        '{"step": 1, "metric": "a", "text": "b", "picture": 3}',
    ],
)
def test_a_warning_of_the_wrong_shape(run: Path, row: str) -> None:
    (run / WARNINGS).write_text(row + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"warnings\.jsonl, line 1"):
        read_warnings(run)


@pytest.mark.parametrize(
    "content", [*WRONG, '{"images": [{"file": 3, "prompt": "a"}]}', '{"images": [{"file": "a.png"}]}']
)
def test_a_list_of_samples_of_the_wrong_shape(tmp_path: Path, content: str) -> None:
    (tmp_path / "samples.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"samples\.json is not a file of t2i-gcpo sample"):
        image_folders.find(tmp_path)


def test_a_list_of_samples_names_files_of_its_folder_alone(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    (tmp_path / "folder").mkdir()
    for name in (str(tmp_path / "outside.png"), "../outside.png", "missing.png"):
        (tmp_path / "folder" / "samples.json").write_text(json.dumps({"images": [{"file": name, "prompt": "a"}]}))
        with pytest.raises(ValueError, match="which is no file inside"):
            image_folders.find(tmp_path / "folder")
