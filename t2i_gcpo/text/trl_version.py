"""Check that the TRL that the trainer stands on is installed, and say what to do where it is not."""

from __future__ import annotations

import importlib.metadata

#: Versions of TRL that the trainer was written against: at least the first, below the second.
OLDEST, TOO_NEW = (1, 16), (2,)
REQUIREMENT = "trl>=1.16,<2"
ADVICE = "pip install 't2i-gcpo[text]'"


def require_trl() -> None:
    """Raise an ImportError where TRL is missing or of a version that the trainer was not written against.

    It names the command that mends it.
    """
    try:
        version = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"training text needs TRL, which is not installed: {ADVICE} (or pip install '{REQUIREMENT}')"
        ) from None
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not OLDEST <= numbers < TOO_NEW:
        raise ImportError(
            f"training text needs {REQUIREMENT}, and TRL {version} is installed: pip install '{REQUIREMENT}'"
        )
    from rewards.models.torchvision_mend import mend

    mend()  # TRL imports transformers' image classes, and these import torchvision
