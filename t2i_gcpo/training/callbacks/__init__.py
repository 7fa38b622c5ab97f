"""Callbacks do what a run does every few steps besides training: validation, pictures, and watching for reward hacking.

A callback never changes the training: its noise has a seed of its own.
"""
