"""GenEval: the verdict on a picture, its detectors, and the `geneval` reward."""

from rewards.geneval.rules import Detection, Verdict, judge

__all__ = ["Detection", "Verdict", "judge"]
