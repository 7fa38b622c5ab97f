"""Prompts are at home here: which files they are read from, and in which order a run draws them.

May import `records` and `utils`. No model, no reward and no training belongs here.
"""
