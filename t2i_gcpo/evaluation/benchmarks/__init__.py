"""Published benchmarks: their protocol, a run that a kill does not undo, and the folders that their own scripts read.

The files of prompts are read in `data`, the scorers are in `rewards`. No number of a paper belongs here.
"""
