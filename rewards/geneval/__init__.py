"""Judges pictures as GenEval does: its rules, its detectors and the `geneval` reward are at home here."""

from rewards.geneval.rules import Detection, Verdict, judge

__all__ = ["Detection", "Verdict", "judge"]
