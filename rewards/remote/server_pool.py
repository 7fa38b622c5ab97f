"""Asks one of several reward servers: the next one where one is away, again after a while where all are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from rewards.remote.exchange import Away, Server, exchange

#: Seconds before the first repetition, doubled for each further one, and the most.
BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
#: Seconds for which a server that was away is asked last.
AWAY = 30.0
#: Seconds of a timeout at most, about 31 years: sockets take no number that is much larger.
LONGEST_TIMEOUT = 1e9


class Servers:
    """Asks several servers with the same scorer.

    `retries` is how often all servers are asked again, after 0.5, 1, 2, ... 30 seconds; `timeout` seconds are for one
    answer. `recognize` gets the url and /metadata of a server before its first request, and again when it comes back:
    it raises ValueError for a stranger.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        token: str | None,
        timeout: float,
        retries: int,
        recognize: Callable[[str, dict[str, Any]], None],
    ) -> None:
        if not all(isinstance(url, str) for url in urls):
            raise ValueError(f"the reward servers' urls are {urls!r}; each must be a text, http://host:port")
        if not urls:
            raise ValueError("the remote reward needs a url: http://host:port, or a list of them")
        check_numbers(timeout, retries)
        if token is not None and (not token or not token.isascii() or not token.isprintable()):
            raise ValueError(
                "the reward server's token is empty or holds characters that are not printable ASCII (a newline at its "
                "end?); give the token alone"
            )
        self.servers = [Server.parse(url) for url in dict.fromkeys(urls)]
        self.token, self.timeout, self.retries, self.recognize = token, timeout, retries, recognize
        self._away: dict[str, float] = {}
        self._recognized: set[str] = set()

    def ask(
        self, path: str, body: bytes | None = None, *, first: int = 0, stop: threading.Event | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Return (url, answer) of the first server that answers, from server number `first` on. `body` None is a GET.

        ConnectionError where none does, naming them all; ValueError where a server refuses the request. `stop` ends the
        wait between two rounds.
        """
        reasons: dict[str, str] = {}
        rounds = 0
        for attempt in range(self.retries + 1):
            if attempt and (stop or threading.Event()).wait(min(BACKOFF * 2 ** (attempt - 1), LONGEST_BACKOFF)):
                break
            rounds += 1
            for server in self._order(first):
                try:
                    answer = self._ask(server, path, body)
                except Away as error:
                    reasons[server.url] = str(error)
                else:
                    return server.url, answer
        listed = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
        raise ConnectionError(
            f"no reward server answered ({listed}), {rounds} times each; start it again: t2i-gcpo serve-rewards"
        )

    def meet(self) -> None:
        """Recognize every server that answers now, or the first that does where none does at once.

        Errors as of `ask`.
        """
        met = False
        for server in self.servers:
            try:
                self._meet(server)
                met = True
            except Away:
                self._lose(server)
        if not met:
            self.ask("/metadata")

    def _ask(self, server: Server, path: str, body: bytes | None) -> dict[str, Any]:
        try:
            if server.url not in self._recognized:
                self._meet(server)
            answer = exchange(server, path, body, token=self.token, timeout=self.timeout)
        except Away:
            self._lose(server)
            raise
        self._away.pop(server.url, None)
        return answer

    def _meet(self, server: Server) -> None:
        about = exchange(server, "/metadata", None, token=self.token, timeout=self.timeout)
        self.recognize(server.url, about)
        self._recognized.add(server.url)

    def _lose(self, server: Server) -> None:
        """Note that a server is away: whoever is there when it comes back may be another one."""
        self._away[server.url] = time.monotonic()
        self._recognized.discard(server.url)

    def _order(self, first: int) -> list[Server]:
        count = len(self.servers)
        turned = [self.servers[(first + k) % count] for k in range(count)]
        now = time.monotonic()
        return sorted(turned, key=lambda server: now - self._away.get(server.url, -AWAY) < AWAY)


def check_numbers(timeout: Any, retries: Any) -> None:
    """Raise ValueError for a timeout that is no positive number, or retries that are no count."""
    truths = isinstance(timeout, bool) or isinstance(retries, bool)
    numbers = isinstance(timeout, (int, float)) and isinstance(retries, int) and not truths
    if not numbers or not 0 < timeout <= LONGEST_TIMEOUT or retries < 0:
        raise ValueError(
            f"timeout is {timeout!r}, retries {retries!r}; they must be above 0 (and at "
            f"most {LONGEST_TIMEOUT:g}), and at least 0"
        )
