"""The pre-training of `clip-mini`, the scorer of pictures and captions, its retrieval test and its model card."""
