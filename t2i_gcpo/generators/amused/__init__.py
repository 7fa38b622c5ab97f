"""The adapter of aMUSEd, a masked generator, which fixes its tokens in a number of sampling steps.

May import `generators.tokens`, the protocol and what adapters share. Other masked models get a folder of their own.
"""

from t2i_gcpo.generators.amused.adapter import Amused

__all__ = ["Amused"]
