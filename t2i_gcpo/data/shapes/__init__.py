"""ShapeScenes, the embedded world, is at home here: its scenes, its prompts and the grammar that reads them back.

May import `records` and the class names of `rewards.geneval`. Training of models on these scenes belongs to `pretrain`.
"""
