"""`GCPOTrainer` is TRL's `GRPOTrainer` with a completion's advantage weighed token by token.

The weights come from the contrast between two prompts. The trainer hooks what TRL offers for it: `_compute_loss` takes
advantages of shape [B, T]. Nothing of TRL's loss is copied. Where the log-probs of the drawn tokens are at hand, they
are used: those that TRL computed at the rollout where several updates share one, else those of the loss's own forward
pass, as the policy is then still the one that sampled. So the price is one forward pass for the negative prompt.

B completions of one process, T completion tokens.
"""

from __future__ import annotations

from t2i_gcpo.text.config import GCPOConfig  # before all else: it explains TRL's absence and mends torchvision

# isort: split

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i_gcpo.advantages import informative_groups
from t2i_gcpo.losses import kl_weights
from t2i_gcpo.text import checks, negatives
from t2i_gcpo.text.batch_credit import (
    EXACT_KL,
    NEGATIVE_IDS,
    NEGATIVE_LOGPS,
    NEGATIVE_MASK,
    WEIGHTS,
    BatchCredit,
    LossInputs,
    TokenBeta,
    own_tokens,
)
from t2i_gcpo.text.dynamic_sampling import fill
from t2i_gcpo.text.heatmap import Recipe, of_logprobs, token_texts
from t2i_gcpo.text.heatmap_files import save
from t2i_gcpo.text.negatives import NegativePrompt, check_different
from t2i_gcpo.text.scoring import PaddedPrompts, pad_prompts, refuse_changed_logits

from trl import GRPOTrainer  # isort: skip
from trl.models.utils import disable_gradient_checkpointing  # isort: skip


class GCPOTrainer(GRPOTrainer):
    """Replaces `GRPOTrainer`, with the same arguments and a `GCPOConfig`.

    `negative_prompt` is a function from a prompt to its negative (None: what the config names). ValueError for what
    cannot work, with the reason.
    """

    _tag_names = ["trl", "gcpo"]
    _name = "GCPO"
    _paper = {"title": "Guidance Contrastive Policy Optimization", "id": "2605.29198"}

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GCPOConfig | None = None,
        train_dataset: Any = None,
        *rest: Any,
        negative_prompt: NegativePrompt | None = None,
        **options: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else Path(str(model.config._name_or_path)).name
            args = GCPOConfig(f"{Path(name).name}-GCPO")
        checks.check_arguments(args, train_dataset, options)
        self.negative = negative_prompt or negatives.negative_prompt(args.negative_prompt)
        checks.check_first_prompt(args, train_dataset, self.negative)
        self.group_size = args.num_generations or 0
        """G, completions of a prompt in training; `GCPOConfig` has checked that it is at least 2."""
        self._pending: BatchCredit | None = None
        self.completions_sampled = 0
        """By all processes since the trainer was made, those that dynamic sampling discarded included; evaluations do
        not count."""
        self._informative = torch.zeros(0, dtype=torch.bool)  # of the last rollout's groups, on all processes
        if isinstance(reward_funcs, list):
            reward_funcs = [checks.checked_reward(function) for function in reward_funcs]
        else:
            reward_funcs = checks.checked_reward(reward_funcs)
        super().__init__(model, reward_funcs, args, train_dataset, *rest, **options)
        checks.check_model(args, self.model, self._tokenizer, train_dataset)
        if args.credit != "uniform" and args.divergence == "exact_kl":
            refuse_changed_logits(self.model.config)
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError(
                    "divergence='exact_kl' calls parts of the model, which FSDP and "
                    "DeepSpeed do not allow; use DDP, or 'kl'"
                )

    # At the rollout -------------------------------------------------------------------------------------------------

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        tokenized = super()._tokenize_prompts(prompts)
        checks.check_lengths(self.model, tokenized[0], self.args.max_completion_length)
        return tokenized

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = self._rollout(inputs)
        if self.model.training and self.args.dynamic_sampling_limit > 1:
            output = self._with_spread(output)
        if "old_per_token_logps" in output and not self.args.refresh_weights:
            # Several updates share this rollout: its weights are computed once, with the policy that sampled.
            size = (
                self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
            )
            credit = BatchCredit(self, output, rows=size)
            credit.positive = output["old_per_token_logps"]
            output[WEIGHTS] = credit.weights
            scored = {NEGATIVE_LOGPS: credit.negative, EXACT_KL: credit.exact_kl}
            output |= {name: values for name, values in scored.items() if values is not None}
        return output

    def _rollout(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Make TRL's rollout, and add the negative prompts of its rows."""
        negative = self._negative_prompts(inputs) if self.args.needs_contrast else None
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self.completions_sampled += len(inputs) * self.accelerator.num_processes
        if negative is not None:
            output[NEGATIVE_IDS], output[NEGATIVE_MASK] = negative.ids, negative.mask
        return output

    def _with_spread(self, output: dict[str, Any]) -> dict[str, Any]:
        """Apply DAPO's dynamic sampling to a rollout, and count its tokens again."""
        rows, size = len(output["completion_ids"]), self.group_size
        mine = slice(self.accelerator.process_index * rows // size, (self.accelerator.process_index + 1) * rows // size)

        def draw(attempt: int) -> tuple[dict[str, Any], Tensor]:
            return self._rollout(self._other_prompts(attempt, rows)), self._informative[mine]

        def finished(enough: bool) -> bool:
            return bool(self.accelerator.gather(torch.tensor([enough], device=self.accelerator.device)).all())

        output, informative, drawn = fill(
            output, self._informative[mine], draw, group_size=size, limit=self.args.dynamic_sampling_limit,
            pad=self._tokenizer.pad_token_id, finished=finished,
        )  # fmt: skip
        metrics = self._metrics["train"]
        metrics["groups/rollouts"].append(float(drawn))
        metrics["groups/informative"].append(float(self.accelerator.gather(informative.float()).mean()))
        tokens = own_tokens(output).sum()
        return output | {"num_items_in_batch": self.accelerator.gather(tokens).sum()}

    def _other_prompts(self, attempt: int, rows: int) -> list[dict[str, Any]]:
        """Draw the rows of a further rollout on this process, each prompt once for each completion of its group."""
        groups = rows * self.accelerator.num_processes // self.group_size
        order = torch.randint(len(self.train_dataset), (groups,), generator=self._generator(attempt, of_process=0))
        start = self.accelerator.process_index * rows
        return [dict(self.train_dataset[int(order[row // self.group_size])]) for row in range(start, start + rows)]

    def _negative_prompts(self, inputs: list[dict[str, Any]]) -> PaddedPrompts:
        """Encode the negative of each row's prompt under the tokenizer's chat template.

        A text without any token becomes the token that ends a text.
        """
        prompts = [example["prompt"] for example in inputs]
        others = [self.negative(prompt) for prompt in prompts]
        check_different(prompts, others)
        tokenizer = self._tokenizer
        ids = [
            list(row) or [tokenizer.bos_token_id or tokenizer.eos_token_id] for row in self._tokenize_prompts(others)[0]
        ]
        return pad_prompts(ids, tokenizer.pad_token_id, self.accelerator.device)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        failed = checks.check_rewards(rewards, self.reward_func_names)
        total = (
            (rewards * self.reward_weights.to(rewards.device))
            .nansum(dim=1)
            .masked_fill(rewards.isnan().all(dim=1), torch.nan)
        )
        if self.model.training:
            self._informative = informative_groups(total, self.group_size)
        self._metrics["train" if self.model.training else "eval"]["rewards/failed"].append(failed)
        return rewards

    # In the loss ----------------------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> Any:
        scored = super()._get_per_token_logps_and_entropies(*args, **options)
        if self._pending is not None:
            self._pending.positive, self._pending.entropy = scored[0].detach(), scored[1].detach()
        return scored

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Compute TRL's loss with one advantage a token."""
        credit = BatchCredit(self, inputs)
        if self.args.needs_contrast and WEIGHTS not in inputs:
            credit.score_negative()  # before the policy's own pass, which it must not disturb
        beta = self.beta
        self._pending = credit
        if beta != 0.0 and self.args.kl_weighting and self.args.credit != "uniform":
            self.beta = TokenBeta(beta, lambda: kl_weights(credit.weights))
        try:
            loss = super()._compute_loss(model, LossInputs(inputs, credit.advantages))
        finally:
            self._pending, self.beta = None, beta
        if self._heatmap_is_due():
            self._draw(credit)
        return loss

    # Beside it ------------------------------------------------------------------------------------------------------

    def _heatmap_is_due(self) -> bool:
        every, first = self.args.heatmap_every, self._step % self.args.gradient_accumulation_steps == 0
        return bool(
            every and first and self.model.training and self.args.needs_contrast
            and self.state.global_step % every == 0 and self.accelerator.is_main_process
        )  # fmt: skip

    def _draw(self, credit: BatchCredit) -> None:
        """Write the heatmap of the completion with the largest advantage in the batch of the last loss."""
        batch = credit.batch
        advantages, tokenizer = batch["advantages"], self._tokenizer
        row = int(advantages.abs().argmax())
        own = own_tokens(batch)[row].bool()
        positive, negative = batch.get("old_per_token_logps", credit.positive), credit.negative
        if positive is None or negative is None or not own.any():
            return

        def text(ids: Tensor, mask: Tensor) -> str:
            return str(tokenizer.decode(ids[row][mask[row].bool()]))

        recipe = Recipe(self.args.normalization, self.args.top, self.args.mass, self.args.floor)
        drawn = of_logprobs(
            positive[row][own], negative[row][own], recipe=recipe, own=(self.args.divergence, credit.weights[row][own]),
            exact=None if credit.exact_kl is None else credit.exact_kl[row][own],
            entropy=None if credit.entropy is None else tuple(credit.entropy[row][own].tolist()),
            prompt=text(batch["prompt_ids"], batch["prompt_mask"]),
            negative_prompt=text(batch[NEGATIVE_IDS], batch[NEGATIVE_MASK]),
            tokens=token_texts(tokenizer, batch["completion_ids"][row][own].tolist()), advantage=float(advantages[row]),
        )  # fmt: skip
        step = self.state.global_step
        folder = Path(self.args.output_dir) / "heatmaps"
        save([drawn], folder, name=f"step_{step:06d}", title=f"step {step}", recipe=recipe)

    def score(
        self, prompts: PaddedPrompts, batch: dict[str, Any], rows: int | None = None, entropy: bool = False
    ) -> Any:
        """Return the policy's log-probs and entropies [B, T] of a batch's completions after other prompts.

        No gradient is kept.
        """
        ids, mask = prompts.with_completion(batch["completion_ids"], batch["completion_mask"])
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            return super()._get_per_token_logps_and_entropies(
                self.model, ids, mask, batch["completion_ids"].shape[1], batch_size=rows, compute_entropy=entropy
            )

    def note(self, numbers: dict[str, float]) -> None:
        """Log some numbers of a batch with those of TRL."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in numbers.items():
            metrics[name].append(value)

    def noise(self) -> torch.Generator:
        """Return the generator that the controls draw from."""
        return self._generator(
            self._step % self.args.gradient_accumulation_steps, of_process=self.accelerator.process_index
        )

    def _generator(self, place: int, of_process: int) -> torch.Generator:
        """Seed a generator by the seed, the step and a place in the step, so that a resumed run draws the same."""
        return torch.Generator().manual_seed(hash((self.args.seed, self.state.global_step, place, of_process)) % 2**63)
