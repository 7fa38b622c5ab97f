"""Models that several scorers share: encoders, their weights, their preprocessing, their device and their batches.

No score is computed here.
"""
