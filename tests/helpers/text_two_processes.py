"""A run whose completions depend on the prompt and their place in the group alone, for `torchrun`.

Argv is the output folder and the batch of a process.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch

from helpers.text_models import GCPOTrainer, trainer


class FixedCompletions(GCPOTrainer):
    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        seen: dict[tuple[int, ...], int] = {}
        completions = []
        for ids in map(tuple, prompt_ids):
            rng = random.Random(str((ids, seen.get(ids, 0), self.state.global_step)))
            seen[ids] = seen.get(ids, 0) + 1
            completions.append([rng.randrange(5, 300) for _ in range(rng.randint(3, 10))])
        return completions, None


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    changes: dict[str, Any] = {"beta": 0.1, "dynamic_sampling_limit": int(sys.argv[3])}
    run = trainer(FixedCompletions, folder, per_device_train_batch_size=int(sys.argv[2]), **changes)
    run.train()
    if run.accelerator.is_main_process:
        torch.save(dict(run.model.named_parameters()), folder / f"parameters_{run.accelerator.num_processes}.pt")
