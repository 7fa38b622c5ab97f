"""The object fields of T2I-R1's prompts: reading them, where objects should lie, and the score of what was detected."""
