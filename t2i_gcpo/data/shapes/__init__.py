"""ShapeScenes, the embedded world: its scenes, its prompts with GenEval's metadata, and the grammar that reads a prompt back.

May import `records` and the class names of `rewards.geneval`. Training of models on these scenes belongs to `pretrain`.
"""
