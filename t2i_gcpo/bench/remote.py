"""Time scoring over HTTP on the loopback interface against the same scorer in the process.

The difference is what packing, sending and unpacking cost. The scorer is made up: it takes a given time an image,
either computing (on one thread, so that the client's packing has the other cores) or waiting (as for an accelerator).
The server is a process of its own. B images, S pixels a side.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from rewards.base import Reward, RewardOutput
from rewards.remote.client import RemoteReward
from rewards.remote.server import RewardServer
from t2i_gcpo.bench import positive
from t2i_gcpo.bench.measure import Line, Report, check_same, cost, interleave, warm_up

BASELINE = "the same scorer in the process"
#: Seconds that a server may take to start: a process that imports torch.
START = 120.0
#: Side of the matrices that the computing scorer multiplies.
MATRIX = 256

Kind = Literal["computing", "waiting"]
KINDS: tuple[Kind, ...] = ("computing", "waiting")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=positive, default=5, help="pairs of batches that are measured")
    parser.add_argument("--batch", type=positive, default=64, help="images")
    parser.add_argument("--milliseconds", type=positive, default=20, help="of the scorer, an image")
    parser.add_argument("--size", type=positive, default=384, help="side of the images, pixels")
    parser.add_argument("--request", type=positive, default=16, help="images a request")


class Scorer(Reward):
    """Score the mean brightness of an image, after some work that has nothing to do with it."""

    def __init__(self, kind: Kind, milliseconds: float, products: int) -> None:
        self.kind, self.milliseconds, self.products = kind, milliseconds, products
        self.matrix = torch.eye(MATRIX)

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        if self.kind == "waiting":
            time.sleep(len(images) * self.milliseconds / 1e3)
        else:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                for _ in range(len(images) * self.products):
                    self.matrix = self.matrix @ self.matrix
            finally:
                torch.set_num_threads(threads)
        return RewardOutput(images.float().mean(dim=(1, 2, 3)) / 255)


def calibrate(milliseconds: float) -> int:
    """Return how many matrix products take at least so long on one thread."""
    trial, products = Scorer("computing", 0, 1), 64
    image = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    trial.products = products
    best = float("inf")
    for _ in range(5):  # the quickest: other work on the machine only slows it down
        started = time.perf_counter()
        trial(image, [""], [{}])
        best = min(best, time.perf_counter() - started)
    return max(1, round(1.05 * products * milliseconds / 1e3 / best))


def pictures(batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Make images [B, 3, S, S] uint8 with smooth colours and some grain, about as hard to pack as a photograph."""
    coarse = torch.rand(batch, 3, 8, 8, generator=generator) * 255
    smooth = functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    grain = 4 * torch.randn(smooth.shape, generator=generator)
    return (smooth + grain).clamp(0, 255).to(torch.uint8)


def _serve(pipe: Connection, scorer: Scorer) -> None:
    """Serve in a process of its own: send its address, and serve until the other end is closed."""
    with RewardServer(scorer, name="bench") as server:
        pipe.send(server.url)
        try:
            pipe.recv()
        except EOFError:
            return


@contextmanager
def served(scorer: Scorer) -> Iterator[str]:
    """Start a server in a process of its own and hand out its URL. RuntimeError where it does not start."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, scorer), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(START):
            raise RuntimeError(f"the reward server did not start within {START:.0f} s")
        yield here.recv()
    except EOFError as error:
        raise RuntimeError("the reward server's process ended before it served") from error
    finally:
        here.close()
        process.join(timeout=10)
        if process.is_alive():
            process.terminate()


def run(options: argparse.Namespace, console: Console) -> Report:
    """Time both sides. RuntimeError: they differ, or the server does not start."""
    generator = torch.Generator().manual_seed(options.seed)
    images = pictures(options.batch, options.size, generator)
    prompts = [f"picture {k}" for k in range(options.batch)]
    metadata: list[dict[str, Any]] = [{} for _ in prompts]
    products = calibrate(options.milliseconds)
    lines: list[Line] = []
    warmup: dict[str, float] = {}
    for kind in KINDS:
        scorer = Scorer(kind, options.milliseconds, products)
        with served(scorer) as url:
            remote = RemoteReward(url=url, batch_size=options.request)
            sides = {
                name: partial(reward, images, prompts, metadata)
                for name, reward in (("ours", remote), ("baseline", scorer))
            }
            spent = warm_up(sides, torch.device("cpu"), console)
            warmup |= {f"{kind}, {side}": seconds for side, seconds in spent.items()}
            check_same("scores", sides["ours"]().scores, sides["baseline"]().scores, rtol=1e-6, atol=1e-6)
            times = interleave(sides, options.pairs, torch.device("cpu"))
        lines.append(cost(kind, times["ours"], times["baseline"], unit="s", seed=options.seed))
    console.print("checked: same scores", highlight=False)
    settings = {
        "batch": options.batch,
        "milliseconds": options.milliseconds,
        "matrix_products_an_image": products,
        "size": options.size,
        "images_a_request": options.request,
        "seed": options.seed,
    }
    return Report("remote", tuple(lines), BASELINE, warmup, torch.device("cpu"), settings)
