"""Make torchvision importable beside a torch build that its binary operators do not fit.

PyPI's torchvision wheel is built against the CUDA build of torch. Next to a CPU build its extension library does not
load, and `import torchvision` dies on "operator torchvision::nms does not exist", because it registers shape functions
for operators that the extension would have defined. Transforms, io of arrays and the models need none of them.
open_clip, timm, peft and transformers import torchvision at the top, so all of them fall with it.

`mend()` declares the missing operators and imports torchvision again, only after that very error. A torchvision that
imports is left alone.
"""

from __future__ import annotations

import importlib
import sys

import torch

from rewards.models.loading import one_at_a_time

#: The message of the one error that is mended; every other error is the caller's.
SYMPTOM = "operator torchvision::nms does not exist"

#: The operators that torchvision's Python side registers shape functions for, with their schemas in torchvision 0.21 to
#: 0.28.
MISSING_OPERATORS: tuple[str, ...] = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# A torch.library.Library takes its definitions away again when it is collected.
_libraries: list[torch.library.Library] = []


@one_at_a_time
def mend() -> bool:
    """Import torchvision, and mend it if it fails with `SYMPTOM`. Call it before anything that imports torchvision.

    Returns True if this call mended it, False if there was nothing to mend (it imports, or it is not installed).
    `torchvision.ops.nms` itself still does not run after mending. Any other error while importing torchvision is
    raised.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name == "torchvision":
            return False
        raise
    except RuntimeError as error:
        if SYMPTOM not in str(error):
            raise
    else:
        return False
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in MISSING_OPERATORS:
        library.define(schema)
    _libraries.append(library)
    importlib.import_module("torchvision")
    return True
