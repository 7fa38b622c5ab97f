"""The demo shows checkpoints, credit, live trainings and runs in the browser.

May import everything but `study`, `bench` and `pretrain`. Nothing of the library is computed here, and Gradio is known
nowhere else.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import threading
from pathlib import Path

from t2i_gcpo.commands.options.number_types import positive
from t2i_gcpo.commands.options.paths import home_path
from t2i_gcpo.demo.server import PASSWORD_VARIABLE, TRIES, check_reach, free_port, launch, read_password

__all__ = ["TRIES", "free_port", "main", "parser"]

#: Seconds that a live training is given to save, once the demo is told to end.
PATIENCE = 60.0


def main(argv: list[str]) -> int:
    """Serve the demo on this machine until Ctrl-C or SIGTERM. No request leaves it."""
    args = parser().parse_args(argv)
    if args.threads < 1:
        raise ValueError(f"--threads is {args.threads}; it must be at least 1")
    password = read_password(args.password_file)
    check_reach(args.host, password)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError(f"the demo needs gradio 6: pip install 'gradio>=6.0' ({error})") from error
    import torch

    import rewards
    from t2i_gcpo.demo import app
    from t2i_gcpo.demo.context import DemoContext
    from t2i_gcpo.demo.models import MASKED, Models, named
    from t2i_gcpo.demo.scoring import Scorer
    from t2i_gcpo.utils.device import pick_device

    torch.set_num_threads(args.threads)
    checkpoints = named(args.checkpoint)
    # Of the embedded ones, those that grew from one base.
    compared = None if args.checkpoint else [name for name in checkpoints if name != MASKED]
    device = pick_device(args.device)
    models = Models(checkpoints, device=device, dtype=args.dtype, keep=args.keep, compared=compared)
    scorer = Scorer(rewards.load(args.reward), args.reward)
    port = free_port(args.host, args.port)
    if port != args.port:
        print(f"port {args.port} is in use; taking {port}", flush=True)
    # Whoever may use the machine may open any of its runs; others see those below --runs.
    context = DemoContext(models, scorer, args.runs, random.Random(), only_runs=password is not None)
    blocks = app.build(context)
    url = launch(blocks, host=args.host, port=port, password=password, sessions=args.sessions)
    # The first click then does not wait for the checkpoints.
    threading.Thread(target=models.load, daemon=True).start()
    print(f"the demo is at {url} with the checkpoints {', '.join(models.names)}; Ctrl-C ends it", flush=True)
    try:
        wait_for_signal()
        context.closing.set()
        if context.training.acquire(blocking=False) or _wait(context.training):
            print("\nstopped", flush=True)
        else:
            print(f"\nstopped; a live training did not end within {PATIENCE:g} seconds", flush=True)
    finally:
        blocks.close(verbose=False)
    return 0


def wait_for_signal() -> None:
    """Wait for Ctrl-C or SIGTERM; the next one ends the program at once."""
    told = threading.Event()
    previous = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not told.wait(1.0):
            pass
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(training: threading.Lock) -> bool:
    print("\nstopping: the live training finishes its step and saves; Ctrl-C again ends it at once", flush=True)
    return training.acquire(timeout=PATIENCE)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the demo's options."""
    parser = argparse.ArgumentParser(prog="t2i-gcpo demo", description=main.__doc__)
    add = parser.add_argument
    add(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a checkpoint to compare, and the name to show: embedded name, folder (a run's checkpoints/step_N or a "
        "delta) or hub name; may be given several times, the first is the one to "
        "start from (default: the embedded ones)",
    )
    add(
        "--runs",
        type=home_path,
        default=Path("runs"),
        help="where run folders are, and live runs go (default: %(default)s)",
    )
    add("--reward", default="geneval", help="a registered reward, or module:callable (default: %(default)s)")
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; any but this machine's own needs a password (default: %(default)s)",
    )
    add("--port", type=int, default=7860, help="where it is in use, the next free one is taken (default: %(default)s)")
    add(
        "--password-file",
        type=home_path,
        metavar="FILE",
        help=(
            "a file with the password that the page asks for; or put it in the "
            f"environment variable {PASSWORD_VARIABLE}"
        ),
    )
    add("--device", default="auto", help="cpu, cuda, ...; auto takes a GPU if there is one")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="(default: %(default)s)")
    add(
        "--threads",
        type=int,
        default=1,
        help="CPU threads; more do not help the embedded checkpoints, and are far slower where the machine has other "
        "work (default: %(default)s)",
    )
    add("--keep", type=positive, default=5, help="checkpoints in memory at once (default: %(default)s)")
    add("--sessions", type=positive, default=100, help="browser windows whose state is kept (default: %(default)s)")
    return parser
