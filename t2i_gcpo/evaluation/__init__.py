"""Scores on held-out prompts with confidence intervals, and measures of where credit lies.

May import `data`, `generators`, `algorithms` and what lies below them. No training and no drawing belongs here.
"""
