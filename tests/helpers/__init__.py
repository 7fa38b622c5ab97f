"""Share between test files: tiny models, a fake generator, run folders, a reward server, the generators' contract.

No test lies here. `from helpers import tiny`; the names of tests never appear.
"""
