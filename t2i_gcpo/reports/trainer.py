"""Train from Python and leave a run folder as `t2i-gcpo train` does: config.yaml, pictures, heatmaps, report.html.

The trainer itself is below the reports and knows none of them. So what a run leaves is put around it here, and this is
the class that `t2i_gcpo.Trainer` is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from t2i_gcpo.data.selection import limit
from t2i_gcpo.reports import run_report
from t2i_gcpo.training.callbacks.pictures import Pictures
from t2i_gcpo.training.options import PicturesConfig
from t2i_gcpo.training.step import StepRecord
from t2i_gcpo.training.tracker import CONFIG, Tracker
from t2i_gcpo.training.trainer import Trainer as BareTrainer
from t2i_gcpo.utils import yaml_files
from t2i_gcpo.utils.files import write_atomically
from t2i_gcpo.utils.secret_options import without_secrets


class Trainer(BareTrainer):
    """Fine-tune `generator` on `prompts` for `reward`, and leave a run folder that `t2i-gcpo compare` reads.

    >>> def redness(images, prompts, metadata):  # [B, 3, H, W] uint8 -> B numbers
    ...     return images[:, 0].float().mean(dim=(1, 2)) / 255
    >>> trainer = Trainer(
    ...     generator, redness, "shapes:train", "runs/all", algorithm="gcpo", steps=1, prompts_per_step=1, group_size=2
    ... )
    >>> trainer.train()
    >>> sorted(path.name for path in trainer.output_dir.iterdir() if not path.name.startswith("."))
    ['checkpoints', 'config.yaml', 'heatmaps', 'metrics.jsonl', 'report.html', 'samples']

    Arguments are those of the trainer below it (`t2i_gcpo.training.trainer.Trainer`), and two more.

    run_folder: False leaves metrics.jsonl and checkpoints alone. pictures: how often samples and heatmaps of the first
    training prompts are drawn, of how many, and how many images of each; the reward scores these images, too.
    """

    def __init__(
        self,
        generator: Any,
        reward: Any,
        prompts: Any,
        output_dir: str | Path,
        *,
        run_folder: bool = True,
        pictures: PicturesConfig = PicturesConfig(),  # noqa: B008 (frozen)
        **options: Any,
    ) -> None:
        super().__init__(generator, reward, prompts, output_dir, **options)
        self.run_folder = run_folder
        named = isinstance(prompts, (str, Path))
        self._source = str(prompts) if named else f"{len(self.prompt_sampler.prompts)} prompts given in Python"
        self._pictures = pictures
        if run_folder and pictures.every and not any(isinstance(one, Pictures) for one in self.callbacks):
            drawn = Pictures(
                limit(list(self.prompt_sampler.prompts), max(pictures.prompts, pictures.candidates)),
                self.reward,
                sampling=self.sampling,
                every=pictures.every,
                group=min(pictures.group, self.algorithm.group_size),
                seed=self.loop.seed,
                shown=pictures.prompts,
                negative_prompt=self.negative_prompt,
            )
            self.callbacks = [*self.callbacks, drawn]

    def _run(self, tracker: Tracker) -> Iterator[StepRecord]:
        if not self.run_folder or not self.processes.is_main:
            yield from super()._run(tracker)
            return
        if not (self.output_dir / CONFIG).exists():  # the command has written its own
            write_atomically(self.output_dir / CONFIG, yaml_files.dump(self.described()))
        if self.step_number == 0:
            for callback in self.callbacks:
                if isinstance(callback, Pictures) and callback.every:
                    callback.draw(self, 0)
        yield from super()._run(tracker)
        run_report.write(self.output_dir)

    def described(self) -> dict[str, Any]:
        """Return the options as config.yaml names them.

        What Python alone has, a function or a list of prompts, stands there by its name: enough to tell runs apart, and
        refused by `t2i-gcpo train --resume`, which could not build it.
        """
        base = self.generator.base
        groups = {
            "algorithm": asdict(self.algorithm),
            "generator": {"checkpoint": self.generator.kind if base is None else base.name},
            "reward": {"name": self.reward.name},
            "prompts": {"train": self._source, "balanced": self.balanced},
            "sampling": {
                **{name: asdict(self.sampling)[name] for name in ("guidance", "temperature", "top_k", "top_p")},
                "negative_prompt": self.negative_prompt,
            },
            "optim": asdict(self.optim),
            "checkpoint": asdict(self.checkpoint),
            "pictures": asdict(self._pictures),
        }
        loop = {name: value for name, value in asdict(self.loop).items() if not isinstance(value, dict)}
        mapping = {**loop, "output_dir": str(self.output_dir), **groups}
        return without_secrets(json.loads(json.dumps(mapping, default=str)))
