"""Asks any scorer behind HTTP, as `t2i-gcpo serve-rewards` serves it. B images, H, W their sides."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.base import AsyncReward, FailurePolicy, PromptError, RewardOutput, check, check_policy, join
from rewards.identity import Identity
from rewards.remote.exchange import Refused
from rewards.remote.server_pool import Servers

if TYPE_CHECKING:
    from torch import Tensor

    from rewards.remote.metadata import About

#: Where the token is looked for when none is given: options are written to a run's config.yaml, and a token is not for
#: there.
TOKEN_VARIABLE = "T2I_GCPO_REWARD_TOKEN"

#: Prompts of one request to check them.
_CHECKED = 500


class RemoteReward(AsyncReward):
    """Asks a reward server for scores: their meaning, range and parts are those of the scorer there.

    Args:
        url: http://host:port of a server, or a list of servers with the same scorer: requests take turns among them,
            and go to the next
            one where one is away.
        token: what the servers demand; None takes it from the file `token_file`, or from the environment variable
            T2I_GCPO_REWARD_TOKEN, if it is set.
        timeout: seconds for one answer.
        retries: how often all servers are asked again when none answers, after 0.5, 1, 2, ... 30 seconds.
        batch_size: images a request; the server gathers requests into batches of its own.
        parallel: requests at a time to each server: while one is scored, the next one is packed and sent.
        compress: of the PNGs, 0 (least work, for a quick network) to 9 (fewest bytes).
        failure: "raise" stops at a score that is not finite; "mark" keeps it as NaN.

    `weights` are those of a weighted sum on the server, else None. `submit` sends the images and returns at once. A
    server is asked which scorer it has at the start, and again when it comes back after it was away; each answer says
    it too.

    Raises, when it is built and when it scores: ConnectionError, naming the servers, where none answers; ValueError
    with a server's own words where it refuses (metadata that its scorer lacks, a wrong token, too large an image), and
    where a server has another scorer.
    """

    def __init__(
        self,
        *,
        url: str | Sequence[str],
        token: str | None = None,
        token_file: str | None = None,
        timeout: float = 300.0,
        retries: int = 6,
        batch_size: int = 16,
        parallel: int = 2,
        compress: int = 1,
        failure: FailurePolicy = "raise",
    ) -> None:
        check_policy(failure)
        counts = all(isinstance(number, int) for number in (batch_size, parallel, compress))
        if not counts or batch_size < 1 or parallel < 1 or compress not in range(10):
            raise ValueError(
                f"batch_size is {batch_size}, parallel {parallel}, compress {compress}; at "
                "least 1, at least 1, 0 to 9 are allowed"
            )
        urls: list[Any] = list(url) if isinstance(url, (list, tuple)) else [url]
        if token is None and token_file is not None:
            token = Path(token_file).expanduser().read_text(encoding="utf-8").strip()
        token = os.environ.get(TOKEN_VARIABLE) or None if token is None else str(token)
        self.servers = Servers(urls, token=token, timeout=timeout, retries=retries, recognize=self._recognize)
        self.compress, self.failure, self.parallel = compress, failure, parallel
        self._met: dict[str, About] = {}
        """Url -> what the server said of itself; the scorer is that of the first."""
        self.servers.meet()
        self.about = next(iter(self._met.values()))
        self.name = f"remote {self.about.identity['name']}"
        self.weights = self.about.identity["weights"]
        self.batch_size = min([batch_size, *(about.images for about in self._met.values())])
        self.submit_batch: int | None = self.batch_size
        self._slots = threading.Semaphore(parallel * len(self.servers.servers))
        self._turn = itertools.count()

    def identity(self) -> Identity:
        """Say which scorer the servers have, wherever they are."""
        return self.about.identity

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Let a server check the prompts. Raises PromptError with its words."""
        from rewards.remote.protocol import write_check

        for start in range(0, len(prompts), _CHECKED):
            rows = slice(start, start + _CHECKED)
            try:
                self.servers.ask("/check", write_check(prompts[rows], metadata[rows]), first=next(self._turn))
            except Refused as error:
                if error.index is None or not 0 <= error.index < len(prompts[rows]):
                    raise
                raise PromptError(start + error.index, str(error)) from error

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        return self.submit(images, prompts, metadata).result()

    def submit(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> PendingScores:
        """Send the images, and return scores that are on their way. Arguments as of a call."""
        from rewards.models.batches import check_images

        check_images(images, self.name)
        if not len(images) == len(prompts) == len(metadata):
            raise ValueError(
                f"reward {self.name!r} got {len(images)} images, {len(prompts)} prompts and {len(metadata)} rows of "
                "metadata; it takes one of each an image"
            )
        stop = threading.Event()
        pieces = []
        size = self._piece(images)
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            pieces.append(self._begin(partial(self._ask, images[rows], prompts[rows], metadata[rows], stop)))
        return PendingScores(pieces, stop, self.name, list(prompts), self.failure)

    def _piece(self, images: Tensor) -> int:
        """Return the images of a request: fewer where they are large, so that the server can hold all requests."""
        room = self.about.waiting // self.parallel
        return max(1, min(self.batch_size, room // max(1, images.shape[-2] * images.shape[-1])))

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
            output = read_answer(answer, len(images))
        except ValueError as error:
            raise ValueError(f"reward server {url}: {error}") from error
        self.about.check_scorer(url, answer)
        return output

    def _recognize(self, url: str, answer: dict[str, Any]) -> None:
        """Take a server's /metadata. ValueError where it has another scorer than the first one had."""
        from rewards.remote.metadata import read_about

        about = read_about(url, answer)
        for other in self._met.values():
            other.check_same(about)
        self._met[url] = about


class PendingScores:
    """Stands for requests that are being answered."""

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
        """Return the scores [B] float32 on the CPU, the rows in their order.

        The first error ends the other requests' waiting.
        """
        try:
            output = join([piece.result() for piece in self._pieces])
        except BaseException:
            self._stop.set()
            raise
        return check(output, len(self._prompts), self._name, self._prompts, failure=self._failure)
