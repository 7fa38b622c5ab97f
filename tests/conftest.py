"""One CPU thread for every test: the models are tiny, and threads that wait for one another cost more than they save."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
