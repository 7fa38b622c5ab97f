"""A function of one's own as a reward, named `module:callable` or `path/to/file.py:callable`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rewards.base import FailurePolicy, RewardOutput, check, check_policy

if TYPE_CHECKING:
    from torch import Tensor


class FunctionReward:
    """Makes a reward of `function(images, prompts, metadata, **options)`.

    The function gets images [B, 3, H, W] uint8, B prompts and B rows of metadata, and returns B numbers (a list, an array
    or a tensor) or a RewardOutput.
    """

    def __init__(
        self, function: Callable[..., Any], *, name: str = "", failure: FailurePolicy = "raise", **options: Any
    ) -> None:
        check_policy(failure)
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.failure = failure
        self.options = options

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        result = self.function(images, prompts, metadata, **self.options)
        if not isinstance(result, RewardOutput):
            result = RewardOutput(self._scores(result))
        return check(result, len(images), self.name, prompts, failure=self.failure)

    def _scores(self, result: Any) -> Tensor:
        import torch

        try:
            return torch.as_tensor(result, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"reward {self.name!r} returned {type(result).__name__}, which is no list of numbers; it must return one "
                "number per image or a RewardOutput"
            ) from error


def load_function(path: str, *, failure: FailurePolicy = "raise", **options: Any) -> FunctionReward:
    """The reward named `module:callable`; a class is built with `options`, a function gets them at every call.

    ValueError where the module, the file or the name in it is missing.
    """
    source, _, attribute = path.rpartition(":")
    module = _module(source, path)
    target = getattr(module, attribute, None)
    if not callable(target):
        raise ValueError(f"reward {path!r}: {source!r} has no callable {attribute!r}")
    if inspect.isclass(target):
        scorer: Any = target(**options)
        return FunctionReward(scorer, name=path, failure=failure)
    return FunctionReward(target, name=path, failure=failure, **options)


def _module(source: str, path: str) -> ModuleType:
    if source.endswith(".py"):
        file = Path(source)
        if not file.is_file():
            raise ValueError(f"reward {path!r}: there is no file {source!r}")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None, "a .py file always has a loader"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        # A package that the user's module lacks is another matter: let that error speak for itself.
        if error.name is None or not f"{source}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"reward {path!r}: no module {source!r}; put its folder on PYTHONPATH, or name the file: "
            f"path/to/file.py:{path.rpartition(':')[2]}"
        ) from error
