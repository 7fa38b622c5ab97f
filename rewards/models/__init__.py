"""Holds what scorers with a model share: encoders, their weights, their preprocessing, their device and their batches.

No score is computed here.
"""
