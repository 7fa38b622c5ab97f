"""What several test files share: tiny models, a generator without a model, run folders, a reward server, the generators' contract.

No test lies here. `from helpers import tiny`; the names of tests never appear.
"""
