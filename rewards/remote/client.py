"""Any scorer behind HTTP, as `t2i-gcpo serve-rewards` serves it. B images, H, W their sides."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from rewards.base import AsyncReward, FailurePolicy, RewardOutput, check, check_policy, join
from rewards.remote.server_pool import Servers

if TYPE_CHECKING:
    from torch import Tensor

#: Where the token is looked for when none is given: options are written to a run's config.yaml, and a token is not for there.
TOKEN_VARIABLE = "T2I_GCPO_REWARD_TOKEN"


class RemoteReward(AsyncReward):
    """The scores of a reward server: what it serves, its range and its parts are those of the scorer there.

    Args:
        url: http://host:port of a server, or a list of servers with the same scorer: requests take turns among them, and go to the next
            one where one is away.
        token: what the servers demand; None takes it from the environment variable T2I_GCPO_REWARD_TOKEN, if it is set.
        timeout: seconds for one answer.
        retries: how often all servers are asked again when none answers, after 0.5, 1, 2, ... 30 seconds.
        batch_size: images a request; the server gathers requests into batches of its own.
        parallel: requests at a time to each server: while one is scored, the next one is packed and sent.
        compress: of the PNGs, 0 (least work, for a quick network) to 9 (fewest bytes).
        failure: "raise" stops at a score that is not finite; "mark" keeps it as NaN.

    `weights` are those of a weighted sum on the server, else None. `submit` sends the images and returns at once.

    Raises, when it is built and when it scores: ConnectionError, naming the servers, where none answers; ValueError with a server's own
    words where it refuses (metadata that its scorer lacks, a wrong token, too large an image), and where servers serve different scorers.
    """

    def __init__(
        self,
        *,
        url: str | Sequence[str],
        token: str | None = None,
        timeout: float = 300.0,
        retries: int = 6,
        batch_size: int = 16,
        parallel: int = 2,
        compress: int = 1,
        failure: FailurePolicy = "raise",
    ) -> None:
        check_policy(failure)
        if batch_size < 1 or parallel < 1 or compress not in range(10):
            raise ValueError(
                f"batch_size is {batch_size}, parallel {parallel}, compress {compress}; at least 1, at least 1, 0 to 9 are allowed"
            )
        urls = [url] if isinstance(url, str) else list(url)
        token = os.environ.get(TOKEN_VARIABLE) or None if token is None else str(token)
        self.servers = Servers(urls, token=token, timeout=timeout, retries=retries)
        self.compress, self.failure = compress, failure
        about = self._about()
        self.name = f"remote {about['reward']}"
        self.weights: dict[str, float] | None = about["weights"]
        self.batch_size = min(batch_size, about["images"])
        self.submit_batch: int | None = self.batch_size
        self._slots = threading.Semaphore(parallel * len(self.servers.servers))
        self._turn = itertools.count()

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        return self.submit(images, prompts, metadata).result()

    def submit(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> PendingScores:
        """Scores that are on their way. Arguments as of a call."""
        from rewards.models.batches import check_images

        check_images(images, self.name)
        if not len(images) == len(prompts) == len(metadata):
            raise ValueError(
                f"reward {self.name!r} got {len(images)} images, {len(prompts)} prompts and {len(metadata)} rows of metadata; "
                "it takes one of each an image"
            )
        stop = threading.Event()
        pieces = []
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            pieces.append(self._begin(partial(self._ask, images[rows], prompts[rows], metadata[rows], stop)))
        return PendingScores(pieces, stop, self.name, list(prompts), self.failure)

    def _begin(self, work: Callable[[], RewardOutput]) -> Future[RewardOutput]:
        """Run `work` in a thread that a program's end does not wait for."""
        future: Future[RewardOutput] = Future()

        def run() -> None:
            try:
                with self._slots:
                    future.set_result(work())
            except BaseException as error:  # it is raised where the scores are asked for
                future.set_exception(error)

        threading.Thread(target=run, name="remote reward", daemon=True).start()
        return future

    def _ask(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], stop: threading.Event
    ) -> RewardOutput:
        from rewards.remote.protocol import read_answer, write_request

        if stop.is_set():
            raise ConnectionAbortedError("another request of the same images failed")
        body = write_request(images, prompts, metadata, level=self.compress)
        url, answer = self.servers.ask("/score", body, first=next(self._turn), stop=stop)
        try:
            return read_answer(answer, len(images))
        except ValueError as error:
            raise ValueError(f"reward server {url}: {error}") from error

    def _about(self) -> dict[str, Any]:
        """What all servers that answer agree on."""
        from rewards.remote.protocol import PROTOCOL

        found = self.servers.each("/metadata")
        scorers: dict[str, Any] = {}
        images = []
        for url, about in found.items():
            if about.get("protocol") != PROTOCOL:
                raise ValueError(
                    f"reward server {url} speaks protocol {about.get('protocol')!r}, this client {PROTOCOL}; install the same "
                    "version of t2i-gcpo on both sides"
                )
            scorers[url] = (about.get("reward"), about.get("options"), about.get("weights"))
            images.append(int(about.get("limits", {}).get("images", 1)))
        first = next(iter(scorers.values()))
        for url, scorer in scorers.items():
            if scorer != first:
                raise ValueError(
                    f"the reward servers serve different scorers: {next(iter(scorers))} {first[0]!r} {first[1]}, "
                    f"{url} {scorer[0]!r} {scorer[1]}; a run needs one and the same on all"
                )
        return {"reward": first[0], "weights": first[2], "images": min(images)}


class PendingScores:
    """Requests under way."""

    def __init__(
        self,
        pieces: list[Future[RewardOutput]],
        stop: threading.Event,
        name: str,
        prompts: list[str],
        failure: FailurePolicy,
    ) -> None:
        self._pieces, self._stop = pieces, stop
        self._name, self._prompts, self._failure = name, prompts, failure

    def result(self) -> RewardOutput:
        """The scores [B] float32 on the CPU, the rows in their order. The first error ends the other requests' waiting."""
        try:
            output = join([piece.result() for piece in self._pieces])
        except BaseException:
            self._stop.set()
            raise
        return check(output, len(self._prompts), self._name, self._prompts, failure=self._failure)
