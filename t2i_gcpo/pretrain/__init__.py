"""The pre-training of the embedded checkpoints from nothing, on ShapeScenes.

May import `data`, `generators`, `evaluation` and `reports`. Fine-tuning with rewards belongs to `training`.
"""
