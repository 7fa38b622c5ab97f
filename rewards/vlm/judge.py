"""Puts a template's question to a model about many pictures at once: bounded concurrency, and each picture and question
only once.

B images of any size, H, W their sides.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import queue
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from rewards.vlm import answers, template
from rewards.vlm.endpoint import Endpoint

#: Where the token is looked for when none is given.
TOKEN_VARIABLE = "T2I_GCPO_JUDGE_TOKEN"


@dataclass(frozen=True)
class Answer:
    """Holds what a judge says of one picture: NaN where its answer does not fit the template."""

    score: float
    parts: dict[str, float] = field(default_factory=dict)


class Picture:
    """Holds one image [3, H, W] uint8, its hash, and its PNG once it is asked for."""

    def __init__(self, image: Tensor) -> None:
        self._pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        self.hash = hashlib.sha256(str(self._pixels.shape).encode() + self._pixels.tobytes()).hexdigest()
        self._lock = threading.Lock()
        self._url = ""

    def url(self) -> str:
        """Return the picture as a data URL."""
        with self._lock:
            if not self._url:
                buffer = io.BytesIO()
                Image.fromarray(self._pixels).save(buffer, "PNG", compress_level=1)
                self._url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        return self._url


class Judge:
    """Asks a served model one template's question, about one picture and one prompt each.

    Args:
        url: http://host:port/v1 of a server, or a list of servers of the same model: requests take turns among them.
        model: its name at the server; None takes the only one that is served.
        template: a name of `rewards/vlm/templates`, or the path of a YAML file (`rewards/vlm/template.py` says what is
            in it).
        token: what the server demands; None takes it from the environment variable T2I_GCPO_JUDGE_TOKEN, if it is set.
        timeout: seconds for one answer.
        retries: how often a request is sent again, after 0.5, 1, 2, ... 30 seconds.
        concurrency: requests at a time, to all servers together.
        top_logprobs: likeliest tokens asked for where a template's answer is one word; 0 reads the written word
            instead.
        cache: answers that are remembered, by the picture's hash and the question; 0 remembers none.

    Raises, when it is built: ConnectionError where no server answers, ValueError for an unknown model or template.
    """

    def __init__(
        self,
        *,
        url: str | Sequence[str],
        model: str | None,
        template_name: str,
        token: str | None,
        timeout: float,
        retries: int,
        concurrency: int,
        top_logprobs: int,
        cache: int,
    ) -> None:
        if concurrency < 1 or not 0 <= top_logprobs <= 20 or cache < 0:
            raise ValueError(
                f"concurrency is {concurrency}, top_logprobs {top_logprobs}, cache {cache}; "
                "at least 1, 0 to 20, at least 0 are allowed"
            )
        self.template = template.load(template_name)
        urls = [url] if isinstance(url, str) else list(url)
        token = os.environ.get(TOKEN_VARIABLE) or None if token is None else str(token)
        self.endpoint = Endpoint(urls, token=token, timeout=timeout, retries=retries)
        self.model = self._served(model)
        self.top_logprobs, self.concurrency = top_logprobs, concurrency
        self._most = cache
        self._known: OrderedDict[tuple[str, str], Future[Answer]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = Pool(concurrency)

    def _served(self, model: str | None) -> str:
        names = self.endpoint.models()
        if model is None:
            if len(names) == 1:
                return names[0]
            raise ValueError(f"the judge serves {', '.join(names) or 'no model'}; name one of them with model:")
        if model not in names:
            raise ValueError(f"the judge serves no model {model!r}; it serves: {', '.join(names) or 'none'}")
        return model

    def submit(self, picture: Picture, prompt: str, stop: threading.Event) -> Future[Answer]:
        """Begin to ask, and return the answer to come; `stop` ends it where another one failed."""
        question = self.template.question(prompt)
        key = (picture.hash, question)
        with self._lock:
            known = self._known.get(key)
            if known is not None and _reusable(known):
                self._known.move_to_end(key)
                return known
            future = self._pool.submit(lambda: self._ask(picture, question, stop))
            if self._most:
                self._known[key] = future
                while len(self._known) > self._most:
                    self._known.popitem(last=False)
            return future

    def _ask(self, picture: Picture, question: str, stop: threading.Event) -> Answer:
        if stop.is_set():
            raise ConnectionAbortedError("another request of the same images failed")
        content = [
            {"type": "image_url", "image_url": {"url": picture.url()}},
            {"type": "text", "text": question},
        ]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.template.max_tokens,
        }
        if self.template.values and self.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        answer = self.endpoint.ask("/chat/completions", body, stop=stop)
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices:
            raise ValueError("the judge's answer has no choices; is it a server of OpenAI's chat API?")
        score, parts = answers.score(choices[0], self.template)
        return Answer(score, parts)


def _reusable(future: Future[Answer]) -> bool:
    """Say whether an answer is worth remembering: one that failed, or that did not fit, is asked for anew."""
    return not future.done() or (future.exception() is None and not math.isnan(future.result().score))


class Pool:
    """Runs what is submitted in threads that a program's end does not wait for."""

    def __init__(self, size: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._size, self._threads = size, 0
        self._lock = threading.Lock()
        weakref.finalize(self, _end, self._tasks, size)

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Return what `work` will return or raise."""
        future: Future[Any] = Future()
        with self._lock:
            if self._threads < self._size:
                self._threads += 1
                threading.Thread(target=_work, args=(self._tasks,), name="vlm judge", daemon=True).start()
        self._tasks.put((future, work))
        return future


def _work(tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    while (task := tasks.get()) is not None:
        future, work = task
        try:
            future.set_result(work())
        except BaseException as error:  # it is raised where the answer is asked for
            future.set_exception(error)
        del task, future, work


def _end(tasks: queue.SimpleQueue[Any], threads: int) -> None:
    for _ in range(threads):
        tasks.put(None)
