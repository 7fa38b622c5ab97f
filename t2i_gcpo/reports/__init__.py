"""Run folders and image folders read back: curves, tables, pages, and the comparison of runs.

May import `training` for the names of a run's files, and what lies below it. Nothing here runs
a model, but for `trainer`: the public Trainer, which puts a run folder around a training.
"""
