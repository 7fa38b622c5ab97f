"""Pre-training of `text-mini`, the language model of the arithmetic task, and its model card.

Fine-tuning with rewards belongs to `text`.
"""
