"""Models of several kinds are loaded in threads of one fresh process, as the demo does when a tab is used at once."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from rewards.models.loading import one_at_a_time

CODE = """
import threading
import rewards
from t2i_gcpo import generators
from t2i_gcpo.text import models

errors, start = [], threading.Barrier(3)

def go(load, name):
    start.wait()
    try:
        load(name)
    except BaseException as error:
        errors.append(f"{name}: {error}")

pairs = ((models.load, "text-mini"), (generators.load, "janus-mini"), (rewards.load, "clip"))
threads = [threading.Thread(target=go, args=pair) for pair in pairs]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("errors:", errors)
"""


@pytest.mark.slow
def test_models_are_loaded_in_several_threads() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip().splitlines()[-1] == "errors: []", done.stderr[-2000:]


def test_one_thread_at_a_time_loads() -> None:
    inside, most = 0, 0
    entered = threading.Event()

    @one_at_a_time
    def load(again: bool = True) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        entered.wait(0.05)  # nobody sets it: time for the others to come in
        inside -= 1
        if again:
            load(again=False)  # the thread that holds the lock may load another model

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
