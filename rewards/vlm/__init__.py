"""Asks a vision-language model that a server holds: requests, prompt templates, and what an answer is worth as a
number.

Nothing here loads a model, and nothing here decides what a score is for: the scorers that use it are in
`rewards/scorers`.
"""
