"""The public scorers, one file each: images and prompts in, scores out.

May import `rewards.base`, `rewards.models` and `rewards.geneval`. Encoders that several scorers share belong to
`models`.
"""
