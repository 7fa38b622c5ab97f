"""One CPU thread for every test: the models are tiny.

And threads that wait for one another cost more than they save.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

# A failing `assert` of a shared helper then shows its values, as one of a test does.
pytest.register_assert_rewrite("helpers")
