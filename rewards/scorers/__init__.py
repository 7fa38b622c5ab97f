"""The public scorers, one file each: images and prompts in, scores out.

May import `rewards.base`, `rewards.models`, `rewards.geneval` and `rewards.vlm`. Encoders that several scorers share
belong to `models`.
"""
