"""Makes rewards of one's own functions and classes, also of those named by module or file and callable."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rewards.base import FailurePolicy, Reward, RewardOutput, check, check_policy

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class FunctionReward(Reward):
    """Makes a reward of `function(images, prompts, metadata, **options)`, or of an object that is called like it.

    The function gets images [B, 3, H, W] uint8, B prompts and B rows of metadata, and returns B numbers (a list, an
    array or a tensor) or a RewardOutput. `None` in the place of a number is a picture without an opinion: its score is
    NaN. An object's own `check_prompts(prompts, metadata)` and `weights` are used where it has them.
    """

    def __init__(
        self, function: Callable[..., Any], *, name: str = "", failure: FailurePolicy = "raise", **options: Any
    ) -> None:
        check_policy(failure)
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.failure = failure
        self.options = self.built_with = options
        _check_call(function, f"reward {self.name!r}", "images", "prompts", "metadata", **options)
        weights = getattr(function, "weights", None)
        self.weights = dict(weights) if isinstance(weights, Mapping) else None

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> RewardOutput:
        result = self.function(images, prompts, metadata, **self.options)
        given = result if isinstance(result, RewardOutput) else RewardOutput(result)
        parts = {str(part): self._numbers(values) for part, values in given.parts.items()}
        output = RewardOutput(self._numbers(given.scores), parts, given.reasons)
        return check(output, len(images), self.name, prompts, failure=self.failure)

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Ask the object's own `check_prompts`, where it has one."""
        own = getattr(self.function, "check_prompts", None)
        if callable(own):
            own(prompts, metadata)

    def own_code(self) -> dict[str, str]:
        """Return a hash of the file that holds the function, or the object's `__call__`; nothing without a file."""
        target = self.function
        while isinstance(target, functools.partial):
            target = target.func
        try:
            file = inspect.getsourcefile(target if inspect.isroutine(target) else type(target).__call__)
        except TypeError:  # made in C
            file = None
        if file is None or not Path(file).is_file():
            return {}
        return {self.name: hashlib.sha256(Path(file).read_bytes()).hexdigest()}

    def _numbers(self, result: Any) -> Tensor:
        import torch

        try:
            if isinstance(result, torch.Tensor):
                return _real(result).float()
            return torch.from_numpy(_array(result))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(
                f"reward {self.name!r} returned {type(result).__name__}, which is no list of numbers; it must return "
                "one number per image or a RewardOutput"
            ) from error


def as_reward(reward: Any, *, name: str = "", failure: FailurePolicy | None = None) -> Reward:
    """Return a reward as it is, and make one of any other function or object that is called like one.

    A function may return any B numbers. `failure` is of what is no reward yet: by default a score that is not finite is
    an error of a function, and marked where an object returns it.
    """
    if isinstance(reward, Reward):
        return reward
    if not callable(reward):
        raise ValueError(
            f"the reward is {type(reward).__name__}, which cannot be called; give a function (images, prompts, "
            "metadata) -> numbers, or what rewards.load returns"
        )
    plain = inspect.isroutine(reward) or isinstance(reward, functools.partial)
    return FunctionReward(reward, name=name, failure=failure or ("raise" if plain else "mark"))


def load_function(path: str, *, failure: FailurePolicy = "raise", **options: Any) -> Reward:
    """Load the reward named `module:callable`; a class is built with `options`, a function gets them at every call.

    ValueError where the module, the file or the name in it is missing, or cannot be called so.
    """
    target = _named(path)
    if not inspect.isclass(target):
        return FunctionReward(target, name=path, failure=failure, **options)
    reward = FunctionReward(_built(target, path, **options), name=path, failure=failure)
    reward.built_with = options
    return reward


def load_callable(path: str) -> Callable[..., Any]:
    """Return the function named `module:callable`, or an object of the class named so, whatever it is called with.

    ValueError where the module, the file or the name in it is missing.
    """
    target = _named(path)
    return _built(target, path) if inspect.isclass(target) else target


def _named(path: str) -> Callable[..., Any]:
    source, _, attribute = path.rpartition(":")
    module = _module(source, path)
    target = getattr(module, attribute, None)
    if not callable(target):
        raise ValueError(f"reward {path!r}: {source!r} has no callable {attribute!r}")
    return target


def _built(kind: Callable[..., Any], path: str, **options: Any) -> Any:
    _check_call(kind, f"reward {path!r}", **options)
    return kind(**options)


def _check_call(function: Callable[..., Any], name: str, *arguments: str, **options: Any) -> None:
    """Raise ValueError where a function cannot be called with these arguments and options, and say what it takes."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # made in C: only a call can tell
        return
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        call = ", ".join([*arguments, *(f"{option}=..." for option in options)])
        raise ValueError(f"{name} takes {signature}, and is called with ({call}): {error}") from error


def _real(values: Tensor) -> Tensor:
    if values.is_complex():
        raise TypeError("complex numbers have no order")
    return values.detach()


def _array(values: Any) -> np.ndarray:
    """Copy numbers of any kind to float32; None and masked values become NaN. TypeError for texts and the like."""
    import numpy as np
    import torch

    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(float), np.nan)
    if isinstance(values, (list, tuple)):
        values = [value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value for value in values]
    array = np.asarray(values)
    if array.dtype == object:
        array = np.asarray([_number(value) for value in array.flat], dtype=np.float64).reshape(array.shape)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{array.dtype} values are no numbers")
    # A copy in one piece: numpy's views with negative strides, in the other byte order or read-only are nothing for
    # torch.
    return np.array(array, dtype=np.float32, order="C")


def _number(value: Any) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, (str, bytes)):
        raise TypeError("a text is no number")
    return float(value)


def _module(source: str, path: str) -> ModuleType:
    if source.endswith(".py"):
        file = Path(source)
        if not file.is_file():
            raise ValueError(f"reward {path!r}: there is no file {source!r}")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None or spec.loader is None:
            raise ValueError(f"reward {path!r}: {source!r} cannot be imported as a Python file")
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
