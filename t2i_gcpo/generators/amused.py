"""aMUSEd (2401.01808) of diffusers as an `ImageGenerator`: a masked generator in the manner of MaskGIT and Muse.

P prompts, G images a prompt, B = P * G rows with row = p * G + g, T = rows * columns tokens, N sampling steps, V codebook, H, W pixels, M
branches folded in one batch. Only the transformer is trained; the text encoder and VQ model are frozen.

Each token's log-probs are taken in the state in which it was committed: so it has one under the prompt and one under the negative prompt,
like a token of an autoregressive generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from t2i_gcpo.generators import deltas
from t2i_gcpo.generators.amused_parts import AmusedParts, TextEncoder, Texts, logits
from t2i_gcpo.generators.base import (
    DISTRIBUTIONS,
    Distribution,
    Negative,
    as_negatives,
    as_prompts,
    check_tokens,
    chunks,
    in_chunks,
    seeded,
)
from t2i_gcpo.generators.checkpoints import Checkpoint, locate
from t2i_gcpo.generators.decoding import DecodeDtype, check_decode_dtype, decoding
from t2i_gcpo.generators.drawing import Branches, Drawn, choose
from t2i_gcpo.generators.policy import PolicyWeights
from t2i_gcpo.logprobs import entropy, selected_logprob
from t2i_gcpo.records import Prompt, Rollout, Sampling
from t2i_gcpo.sampling import behaviour_logits, row_noise
from t2i_gcpo.unmasking import annealed, newly_committed, state, still_masked

#: The attention projections and feed-forward layers of a `UVit2DModel`.
UVIT_TARGETS: tuple[str, ...] = (
    "to_q",
    "to_k",
    "to_v",
    r"to_out\.0",
    "wi_0",
    "wi_1",
    "wo",
    r"ff\.net\.0\.proj",
    r"ff\.net\.2",
)

NULL = ""
"""The null prompt's text, as in the published pipeline."""


class Amused:
    """See `generators.base.ImageGenerator` for the methods' contracts; how tokens are unmasked stands in `Sampling.unmasking`."""

    kind = "amused"

    def __init__(
        self,
        parts: AmusedParts,
        *,
        base: Checkpoint | None = None,
        max_batch: int | None = None,
        compile: bool | Literal["auto"] = "auto",
        gradient_checkpointing: bool = True,
        decode_dtype: DecodeDtype = "auto",
    ) -> None:
        """
        max_batch: rows sampled or decoded at once (None: all); images do not depend on it beyond rounding.
        compile: accepted as other generators do; this one's steps are not compiled.
        gradient_checkpointing: keep the activations of one sampling step at a time in the backward pass, and compute those of the others
            again. Off: the activations of all N steps exist at once.
        decode_dtype: precision of the image decoder; see `decoding`.
        """
        check_decode_dtype(decode_dtype)
        self.decode_dtype = decode_dtype
        self.parts = parts.eval()
        self.base, self.max_batch = base, max_batch
        self.gradient_checkpointing = gradient_checkpointing
        self.grid = parts.grid
        self.codebook_size = int(parts.transformer.config.codebook_size)
        self.weights = PolicyWeights(parts, "transformer")
        self.texts = TextEncoder(parts)

    # -- loading and saving --------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        **options: Any,
    ) -> Amused:
        """As `generators.load`, for a checkpoint known to be aMUSEd. `options` go to `__init__`."""
        checkpoint = locate(str(name_or_path), revision=revision)
        return cls.from_checkpoint(checkpoint, device=torch.device(device), dtype=dtype, **options)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, **options: Any
    ) -> Amused:
        generator = cls(AmusedParts.load(checkpoint.folder, dtype).to(device), base=checkpoint, **options)
        if checkpoint.delta is not None:
            deltas.apply(generator.policy, checkpoint.delta, checkpoint.folder)
        if checkpoint.adapter is not None:
            generator.weights.load_lora(checkpoint.adapter, device)
        return generator

    def save(self, path: str | Path) -> None:
        """A folder in diffusers' layout; with LoRA an adapter folder that names its base."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        if self.weights.peft is None:
            self.parts.save(path)
        elif self.base is None:
            raise ValueError(
                "a LoRA adapter needs the name of its base: load the model with generators.load, or merge_lora() first"
            )
        else:
            self.weights.save_lora(path, base=self.base.name, revision=self.base.revision)

    # -- the trained weights -------------------------------------------------------------------------------------------

    @property
    def policy(self) -> nn.Module:
        """The transformer. Set it to a wrapper of the same module (DDP) to train through that."""
        return self.weights.module

    @policy.setter
    def policy(self, module: nn.Module) -> None:
        self.weights.module = module

    @property
    def device(self) -> torch.device:
        return self.parts.text_encoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self.parts.text_encoder.dtype

    def trainable_parameters(self) -> list[nn.Parameter]:
        return self.weights.trainable_parameters()

    def add_lora(
        self, rank: int = 16, alpha: float = 32.0, *, targets: Sequence[str] = UVIT_TARGETS, seed: int = 0
    ) -> None:
        """Train LoRA adapters on the transformer's projections. Does nothing if a loaded adapter has the same shape."""
        self.weights.add_lora(rank, alpha, targets, seed)

    def merge_lora(self) -> None:
        self.weights.merge_lora()

    def keep_reference(self) -> None:
        self.weights.keep_reference()

    def reference(self) -> AbstractContextManager[None]:
        return self.weights.reference()

    # -- sampling ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt | str],
        sampling: Sampling,
        *,
        rng: torch.Generator | None = None,
        first_prompt_index: int = 0,
        negative_prompts: Negative = None,
    ) -> Rollout:
        """P prompts -> B = P * G token grids. `logprob_negative` and the stats `exact_kl` and `js` contrast the prompt with
        `negative_prompts` (None: the null prompt); the stat `entropy` is the raw conditional distribution's. All of them are of the
        step that committed the token.

        The null prompt's branch runs if guidance is not 1 or a stat needs it, and `logprob_negative` is then free. A negative
        text costs N forward passes without gradient, or a third branch if a stat needs it.
        ValueError: more steps than tokens.
        """
        prompts = as_prompts(prompts)
        negatives = as_negatives(negative_prompts, len(prompts))
        sampling = seeded(sampling, rng)
        plan = sampling.unmasking
        counts = (self.length, *still_masked(plan.steps, self.length, plan.schedule))
        rows = [(prompt, image) for prompt in range(len(prompts)) for image in range(sampling.group_size)]
        with self._eval_mode() as policy:
            drawn, commits = zip(
                *(
                    self._draw_part(policy, prompts, negatives, sampling, part, first_prompt_index, counts)
                    for part in chunks(rows, self.max_batch)
                ),
                strict=True,
            )
        records = {name: torch.cat([part.records[name] for part in drawn]) for name in drawn[0].records}
        rollout = Rollout(
            tokens=torch.cat([part.tokens for part in drawn]),
            logprob_positive=records.pop("positive"),
            logprob_negative=records.pop("negative", None),
            logprob_behaviour=records.pop("behaviour"),
            commit_step=torch.cat(commits),
            prompts=prompts,
            grid=self.grid,
            sampling=sampling,
            negative_prompts=negatives,
            stats=records,
        )
        if rollout.logprob_negative is None and sampling.contrast:
            negative = in_chunks(
                lambda part: self.token_logprobs(rollout.rows(part), prompt="negative"),
                torch.arange(rollout.batch),
                self.max_batch,
            )
            rollout = replace(rollout, logprob_negative=negative)
        return rollout

    def _draw_part(
        self,
        policy: nn.Module,
        prompts: Sequence[Prompt],
        negatives: Sequence[str] | None,
        sampling: Sampling,
        rows: Sequence[tuple[int, int]],
        first_prompt_index: int,
        counts: Sequence[int],
    ) -> tuple[Drawn, Tensor]:
        """Tokens, records and commit steps [R, T] of some rows; `counts`: masked tokens before the first step, and after each."""
        plan = sampling.unmasking
        texts, branches = self._branches(
            [prompts[p].text for p, _ in rows], negatives and [negatives[p] for p, _ in rows], sampling
        )
        indices = [(first_prompt_index + p, g) for p, g in rows]
        noise = row_noise(sampling.seed, indices, 2 * plan.steps * self.length, device=self.device)
        noise = rearrange(noise, "r (n two t) -> n two r t", n=plan.steps, two=2)
        tokens = torch.zeros(len(rows), self.length, dtype=torch.long, device=self.device)
        commit = torch.full_like(tokens, plan.steps)
        records: dict[str, Tensor] = {}
        for step in range(plan.steps):
            folded = repeat(state(tokens, commit, step, self.parts.mask_token), "r t -> (m r) t", m=branches.count)
            found = rearrange(self._logits(policy, folded, texts), "(m r) t v -> m r t v", m=branches.count)
            candidate, record = choose(found, noise[step, 0], sampling, branches)
            new = newly_committed(
                record["behaviour"],
                commit == plan.steps,
                counts[step] - counts[step + 1],
                noise[step, 1],
                order=plan.order,
                temperature=annealed(step, plan.steps, (plan.temperature, 0.0)),
            )
            tokens, commit = torch.where(new, candidate, tokens), torch.where(new, step, commit)
            records = {name: torch.where(new, value, records.get(name, value)) for name, value in record.items()}
        return Drawn(tokens, records), commit

    def _branches(self, texts: list[str], negatives: list[str] | None, sampling: Sampling) -> tuple[Texts, Branches]:
        """The folded branches' texts [M R], and which is which."""
        divergences = bool({"exact_kl", "js"} & set(sampling.stats))
        parts, null, contrast = [self.texts(texts)], None, None
        if sampling.guidance != 1 or (divergences and negatives is None):
            null = len(parts)
            parts.append(self.texts([NULL] * len(texts)))
        if divergences and negatives is not None:
            contrast = len(parts)
            parts.append(self.texts(negatives))
        elif negatives is None:
            contrast = null
        return parts[0].cat(*parts[1:]), Branches(null=null, contrast=contrast, count=len(parts))

    @property
    def length(self) -> int:
        """T."""
        return self.grid[0] * self.grid[1]

    def _logits(self, policy: nn.Module, states: Tensor, texts: Texts) -> Tensor:
        return logits(policy, states, texts, self.grid, self.parts.pixels)

    # -- scoring -------------------------------------------------------------------------------------------------------

    def token_logprobs(
        self,
        rollout: Rollout,
        *,
        prompt: str | list[str] = "positive",
        distribution: Distribution = "conditional",
    ) -> Tensor:
        """[B, T] fp32, nats, differentiable in the policy: the log-prob of each of `rollout.tokens` in the state that committed it.

        prompt: "positive", "negative" (the rollout's negative prompts, else the null prompt), or texts, one for each prompt or row.
        distribution: "conditional", raw; "guided", the one that tokens were drawn from (guidance, temperature and truncation of
        `rollout.sampling`); "guided_detached", the same without gradient through the unconditional branch.

        N forward passes, one a step, and as many backward.
        """
        if distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution is {distribution!r}; allowed: {', '.join(DISTRIBUTIONS)}")
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        sampling = rollout.sampling
        texts = self._row_texts(rollout, prompt)
        guided = distribution != "conditional" and sampling.guidance != 1
        null = self.texts([NULL] * rollout.batch) if guided else None

        def score(states: Tensor, index: Tensor, chosen: Tensor) -> Tensor:
            """Log-probs [B, c] of the tokens `chosen` [B, c] at positions `index` [B, c]."""
            unconditional = None
            if null is not None and distribution == "guided":
                both = self._logits(self.weights.module, repeat(states, "b t -> (m b) t", m=2), texts.cat(null))
                conditional, unconditional = rearrange(_at(both, index.repeat(2, 1)), "(m b) c v -> m b c v", m=2)
            else:
                conditional = _at(self._logits(self.weights.module, states, texts), index)
                if null is not None:
                    with torch.no_grad():
                        unconditional = _at(self._logits(self.weights.module, states, null), index)
            if distribution == "conditional":
                return selected_logprob(conditional, chosen)
            mixed = behaviour_logits(
                conditional,
                unconditional,
                guidance=sampling.guidance,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                keep=chosen,
            )
            return selected_logprob(mixed, chosen)

        return self._by_step(rollout, score)

    @torch.no_grad()
    def token_entropy(self, rollout: Rollout) -> Tensor:
        """[B, T] fp32, nats: the entropy of the raw conditional distribution that each of `rollout.tokens` comes from."""
        check_tokens(rollout.tokens, self.grid, self.codebook_size)
        texts = self._row_texts(rollout, "positive")

        def score(states: Tensor, index: Tensor, chosen: Tensor) -> Tensor:
            return entropy(_at(self._logits(self.weights.module, states, texts), index))

        return self._by_step(rollout, score)

    def _by_step(self, rollout: Rollout, score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """[B, T]: `score` of each step's state and the tokens that it committed."""
        tokens, commit = rollout.tokens.to(self.device), rollout.commit_step.to(self.device)
        # Every row commits equally many tokens at a step, so those of one step are a [B, c] block of this order.
        order = commit.argsort(dim=1, stable=True)
        sizes = torch.bincount(commit[0], minlength=int(commit.max()) + 1).tolist()
        blocks = []
        for step, index in enumerate(order.split(sizes, dim=1)):
            arguments = (state(tokens, commit, step, self.parts.mask_token), index, tokens.gather(1, index))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                blocks.append(checkpoint(score, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                blocks.append(score(*arguments))
        return torch.cat(blocks, dim=1).gather(1, order.argsort(dim=1))

    def _row_texts(self, rollout: Rollout, prompt: str | list[str]) -> Texts:
        """The texts [B] that `prompt` asks for."""
        if isinstance(prompt, str):
            if prompt not in ("positive", "negative"):
                raise ValueError(f'prompt is {prompt!r}; allowed: "positive", "negative", or a list of texts')
            found = [item.text for item in rollout.prompts]
            if prompt == "negative":
                found = list(rollout.negative_prompts or [NULL] * len(rollout.prompts))
        else:
            found = list(prompt)
        if len(found) not in (len(rollout.prompts), rollout.batch):
            raise ValueError(
                f"{len(found)} texts for {len(rollout.prompts)} prompts and {rollout.batch} rows; pass one for each"
            )
        copies = rollout.sampling.group_size if len(found) == len(rollout.prompts) else 1
        return self.texts([text for text in found for _ in range(copies)])

    def check_prompts(self, prompts: Sequence[Prompt | str]) -> None:
        """ValueError for a prompt that is too long, or has words that the tokenizer does not know."""
        self.texts.check([prompt.text for prompt in as_prompts(prompts)])

    @contextmanager
    def _eval_mode(self) -> Iterator[nn.Module]:
        policy = self.weights.unwrapped()
        training = policy.training
        policy.eval()
        try:
            yield policy
        finally:
            policy.train(training)

    # -- images --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """[B, T] int64 -> [B, 3, H, W] uint8, on the model's device. ValueError for another T, or indices outside the codebook."""
        check_tokens(tokens, self.grid, self.codebook_size)
        channels = int(self.parts.vqvae.config.latent_channels)

        def decode_rows(part: Tensor) -> Tensor:
            grid = rearrange(part, "b (h w) -> b h w", h=self.grid[0])
            pixels = self.parts.vqvae.decode(
                grid, force_not_quantize=True, shape=(*grid.shape, channels)
            ).sample  # [0, 1]
            return (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)

        with decoding(self.decode_dtype, self.device, self.dtype):
            return in_chunks(decode_rows, tokens.to(self.device), self.max_batch)


def _at(found: Tensor, index: Tensor) -> Tensor:
    """Logits [b, T, V] at the positions `index` [b, c]: [b, c, V]."""
    return found.gather(1, repeat(index, "b c -> b c v", v=found.shape[-1]))
