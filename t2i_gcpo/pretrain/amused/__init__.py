"""The pre-training of `amused-mini`, the masked generator on janus-mini's VQ model, and its model card."""
