"""Pure functions on token logits: drawing, log-probs, unmasking order, guidance branches.

Tensors in, tensors out; may import `records` alone. No model, no file and no device choice belongs here.
"""
