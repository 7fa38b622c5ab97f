"""What several processes cannot work with is refused by all of them, with one line that says what to do."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import torch

from helpers import tiny
from helpers.ranks_command import Rank, apart, arguments, finished, start
from t2i_gcpo.training.cards import check_cards, own_card

slow = [pytest.mark.slow, pytest.mark.timeout(900)]


def refused(ranks: list[Rank], *words: str, status: int = 2, port: int | None = None) -> None:
    """All end with the status of a user's mistake, and one of them says why, in one line."""
    ended = apart(ranks, port=port)
    output = "".join(said for _, said in ended)
    assert [code for code, _ in ended] == [status] * len(ranks), output[-3000:]
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in output, output[-3000:]
    assert all(word in lines[0] for word in words), lines[0]


class TestCommand:
    pytestmark = slow

    def test_prompts_that_cannot_be_shared(self, tmp_path: Path) -> None:
        options = arguments(tmp_path, "--prompts-per-step", "3")
        refused([Rank(options)] * 2, "prompts_per_step is 3, which 2 processes cannot share evenly; use 2 or 4")

    def test_other_options(self, tmp_path: Path) -> None:
        one, two = arguments(tmp_path), arguments(tmp_path, "--evaluate.after", "true", "--optim.lr", "0.5")
        refused([Rank(one), Rank(two)], "options of rank 1 differ from those of rank 0 (evaluate.after, optim.lr)")

    @pytest.mark.parametrize(
        ("option", "kind"), [("train", "prompts"), ("validation", "validation prompts"), ("test", "test prompts")]
    )
    def test_other_prompts(self, option: str, kind: str, tmp_path: Path) -> None:
        """The same relative name is another file on each of two machines."""
        ranks = []
        for rank in range(2):
            folder = tmp_path / str(rank)
            folder.mkdir()
            (folder / "own.txt").write_text("a red circle\na blue square\n" + "a green star\n" * rank)
            ranks.append(Rank(arguments(tmp_path, f"--prompts.{option}", "own.txt"), cwd=folder))
        refused(ranks, f"error: {kind} of rank 1 differ from those of rank 0")

    def test_other_code(self, tmp_path: Path) -> None:
        root = Path(__file__).parents[1]
        for package in ("t2i_gcpo", "rewards"):
            shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("assets", "__pycache__"))
        (tmp_path / "t2i_gcpo" / "assets").symlink_to(root / "t2i_gcpo" / "assets")
        with (tmp_path / "t2i_gcpo" / "losses.py").open("a") as file:
            file.write("# another version\n")
        one, two = Rank(arguments(tmp_path)), Rank(arguments(tmp_path), code=tmp_path)
        refused([one, two], "code of rank 1 differ from those of rank 0")

    def test_other_code_of_a_reward_of_ones_own(self, tmp_path: Path) -> None:
        ranks = []
        for rank in range(2):
            folder = tmp_path / f"rank{rank}"
            folder.mkdir()
            (folder / "own.py").write_text(
                f"def score(images, prompts, metadata):\n    return [{rank}.0] * len(images)\n"
            )
            ranks.append(Rank(arguments(tmp_path, "--reward.name", "own.py:score"), cwd=folder))
        refused(ranks, "error: rewards of rank 1 differ from those of rank 0 (own.py:score)")

    def test_a_folder_that_is_not_shared(self, tmp_path: Path) -> None:
        """A relative name is another folder on each of two machines; half of each checkpoint would be on either."""
        options = arguments(tmp_path, "--output-dir", "run")
        ranks = [Rank(options, cwd=tmp_path / name) for name in ("one", "two")]
        for rank in ranks:
            assert rank.cwd is not None
            rank.cwd.mkdir()
        refused(ranks, "the run folder of rank 0 is not seen by rank 1", "two/run); name a folder on a disk that all")
        assert not list((tmp_path / "two").iterdir()) and not list((tmp_path / "one" / "run").iterdir())

    def test_cuda_where_there_is_none(self, tmp_path: Path) -> None:
        options = arguments(tmp_path, "--generator.device", "cuda")
        refused([Rank(options, environment={"CUDA_VISIBLE_DEVICES": ""})] * 2, "device is 'cuda', which cannot be used")

    def test_a_port_in_use(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            ranks = [Rank(arguments(tmp_path))]
            refused(ranks, f"port {port} is in use on 127.0.0.1; give torchrun another", port=port)

    def test_a_checkpoint_of_another_model(self, tmp_path: Path) -> None:
        options = arguments(tmp_path, "--steps", "1")
        status, said = finished(start(1, options), 300)
        assert status == 0, said[-3000:]
        shutil.rmtree(tmp_path / "model")
        tiny.checkpoint(tmp_path / "model", width=64)
        refused([Rank([*options, "--resume"])] * 2, "the checkpoint is of a run that began with another generator")


def test_each_process_has_its_own_card() -> None:
    assert [own_card(torch.device("cuda"), rank, 2, 8) for rank in range(2)] == [0, 1]
    assert own_card(torch.device("cuda:3"), 0, 1, 8) == 3
    with pytest.raises(ValueError, match="device is 'cuda:3', and 2 processes of this machine would share that card"):
        own_card(torch.device("cuda:3"), 0, 2, 8)
    with pytest.raises(ValueError, match="4 processes on a machine with 2 CUDA devices; .*--nproc-per-node 2"):
        own_card(torch.device("cuda"), 0, 4, 2)


def test_a_card_that_another_process_has_is_refused() -> None:
    check_cards(["a 1", "a 2", "b 1"])
    with pytest.raises(ValueError, match="ranks 0 and 2 have the same card"):
        check_cards(["a 1", "a 2", "a 1"])
