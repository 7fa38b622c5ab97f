"""The pre-training of `janus-mini`: its VQ model, its language model and its model card."""
