"""Reads the object fields of T2I-R1's prompts, and scores detected objects by them."""
