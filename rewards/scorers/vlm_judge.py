"""The `vlm_judge` reward: a served vision-language model is asked about each picture. B images, H, W their sides."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from rewards.base import AsyncReward, FailurePolicy, RewardOutput, check_each, check_policy
from rewards.identity import Identity, identity
from rewards.vlm.judge import Answer, Judge, Picture
from rewards.vlm.pending import PendingAnswers
from rewards.vlm.questions import combine, questions

if TYPE_CHECKING:
    from torch import Tensor

NAME = "vlm_judge"
#: What is asked about -> the template where none is named.
_TEMPLATES = {"prompt": "vqascore", "questions": "question"}


class VlmJudge(AsyncReward):
    """Asks a vision-language model behind OpenAI's chat API (vLLM, SGLang, llama.cpp's server) about each picture.

    Args:
        url: http://host:port/v1 of a server, or a list of servers of the same model: requests take turns among them.
        model: its name at the server; None takes the only one that is served.
        ask: "prompt" asks one question about picture and prompt. "questions" asks each of the row's `questions`, of
            which each is {"id", "question", "parents"?, "category"?}, and scores them as DPG-Bench does
            (`rewards/vlm/questions.py`), in [0, 1].
        template: what is asked and how the answer becomes a number. "vqascore": the probability of yes, in [0, 1];
            "rating": the expected rating, 1 to 5; "unified_reward", "unified_reward_short", "unified_reward_2"
            (UnifiedReward's, 1 to 5), "qwen_vl_aesthetic" (1 to 5): what is written; or the path of a YAML file of your
            own. `rewards/vlm/templates` has their wording and sources. None takes "vqascore" for a prompt and
            "question" for questions, of which each takes the prompt's place in the template.
        token: what the server demands; None takes it from the environment variable T2I_GCPO_JUDGE_TOKEN, if it is set.
        timeout: seconds for one answer.
        retries: how often a request is sent again, after 0.5, 1, 2, ... 30 seconds, where the server is away, slow,
            busy or garbled.
        concurrency: requests at a time, to all servers together; the server makes batches of them.
        top_logprobs: likeliest tokens asked for where the answer is one word; 0, or a server that sends none, reads the
            written word.
        cache: answers that are remembered, by the picture's hash and the question; 0 remembers none.
        failure: "raise" stops at an answer that does not fit the template; "mark" keeps it as NaN.

    Parts: the numbers that a template names where it names several (`unified_reward_2`: alignment, coherence, style;
    the score is their mean); `category/<name>` of questions with categories (NaN for a picture without such questions).
    `submit` sends the questions and returns at once.

    Raises, when it is built and when it scores: ConnectionError where no server answers after all retries; ValueError
    with a server's own words where it refuses, for an unknown model or template, and for images that are not uint8.
    """

    name = NAME

    def __init__(
        self,
        *,
        url: str | Sequence[str],
        model: str | None = None,
        ask: Literal["prompt", "questions"] = "prompt",
        template: str | None = None,
        token: str | None = None,
        timeout: float = 120.0,
        retries: int = 5,
        concurrency: int = 16,
        top_logprobs: int = 20,
        cache: int = 65_536,
        failure: FailurePolicy = "raise",
    ) -> None:
        check_policy(failure)
        if ask not in _TEMPLATES:
            raise ValueError(f"ask is {ask!r}; allowed: {', '.join(_TEMPLATES)}")
        self.judge = Judge(
            url=url,
            model=model,
            template_name=_TEMPLATES[ask] if template is None else template,
            token=token,
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            top_logprobs=top_logprobs,
            cache=cache,
        )
        if ask == "questions" and not self.judge.template.values:
            raise ValueError(f"the template {template!r} asks for numbers; questions need one whose answer is one word")
        self.ask, self.failure = ask, failure
        self.submit_batch: int | None = concurrency

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Raise PromptError for the first row without questions, where questions are asked."""
        if self.ask == "questions":
            check_each(lambda prompt, row: questions(row, prompt), prompts, metadata)

    def identity(self) -> Identity:
        """Say which scorer it is; the model is the one that is served, also where none was named."""
        return identity(NAME, {**self.built_with, "model": self.judge.model})

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        return self.submit(images, prompts, metadata).result()

    def submit(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> PendingAnswers:
        """Begin to ask, and return the scores to come. Arguments as of a call."""
        from rewards.models.batches import check_images, check_prompts

        check_images(images, NAME)
        check_prompts(images, prompts, NAME)
        rows = [questions(row, prompt) if self.ask == "questions" else [] for prompt, row in _pairs(prompts, metadata)]
        stop = threading.Event()
        futures = []
        for image, prompt, row in zip(images.cpu(), prompts, rows, strict=True):
            picture = Picture(image)
            texts = [one["question"] for one in row] or [prompt]
            futures.append([self.judge.submit(picture, text, stop) for text in texts])

        def answer(index: int, answers: list[Answer]) -> Answer:
            return combine(rows[index], [one.score for one in answers]) if rows[index] else answers[0]

        return PendingAnswers(futures, answer, stop, name=NAME, prompts=prompts, failure=self.failure)


def _pairs(prompts: list[str], metadata: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    if len(prompts) != len(metadata):
        raise ValueError(
            f"reward {NAME!r} got {len(prompts)} prompts and {len(metadata)} rows of metadata; one row a prompt"
        )
    return list(zip(prompts, metadata, strict=True))
