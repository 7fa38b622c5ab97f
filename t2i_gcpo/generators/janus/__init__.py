"""The adapter of Janus and Janus-Pro, which draw image tokens one after the other.

May import `generators.tokens`, the protocol and what adapters share. Other autoregressive models get a folder of their
own.
"""

from t2i_gcpo.generators.janus.adapter import Janus

__all__ = ["Janus"]
