"""`t2i-gcpo demo`: compare checkpoints, inspect credit, train live and look at runs, in the browser."""

from __future__ import annotations

import argparse
import os
import random
import socket
import threading
import time
from pathlib import Path

from t2i_gcpo.commands.options.number_types import positive
from t2i_gcpo.commands.options.paths import home_path

#: Ports that are tried after the one that was asked for.
TRIES = 20


def main(argv: list[str]) -> int:
    """Serve the demo on this machine until Ctrl-C. No request leaves it."""
    args = parser().parse_args(argv)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f"the demo needs gradio 6: pip install 'gradio>=6.0' ({error})") from error
    import torch

    import rewards
    from t2i_gcpo.commands.options import build
    from t2i_gcpo.demo import app, html_parts
    from t2i_gcpo.demo.context import DemoContext
    from t2i_gcpo.demo.models import MASKED, Models, named
    from t2i_gcpo.demo.scoring import Scorer

    if args.threads < 1:
        raise ValueError(f"--threads is {args.threads}; it must be at least 1")
    torch.set_num_threads(args.threads)
    checkpoints = named(args.checkpoint)
    # Of the embedded ones, those that grew from one base.
    compared = None if args.checkpoint else [name for name in checkpoints if name != MASKED]
    device = build.pick_device(args.device)
    models = Models(checkpoints, device=device, dtype=args.dtype, keep=args.keep, compared=compared)
    scorer = Scorer(rewards.load(args.reward), args.reward)
    port = free_port(args.host, args.port)
    if port != args.port:
        print(f"port {args.port} is in use; taking {port}", flush=True)
    blocks = app.build(DemoContext(models, scorer, args.runs, random.Random()))
    _, url, _ = blocks.launch(
        server_name=args.host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        state_session_capacity=args.sessions,
        css=html_parts.CSS,
        theme=gradio.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    # The first click then does not wait for the checkpoints.
    threading.Thread(target=models.load, daemon=True).start()
    print(f"the demo is at {url} with the checkpoints {', '.join(models.names)}; Ctrl-C ends it", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("\nstopped", flush=True)
    finally:
        blocks.close(verbose=False)
    return 0


def free_port(host: str, first: int) -> int:
    """`first`, or the next port that is free. ValueError: none of `TRIES` is, no such port, or a host that is not this machine's."""
    if not 0 < first < 65536:
        raise ValueError(f"--port is {first}; allowed are 1 to 65535")
    last = min(first + TRIES, 65535)
    for port in range(first, last + 1):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # a port whose last server has just ended is free
            try:
                probe.bind((host, port))
                return port
            except socket.gaierror as error:
                raise ValueError(f"--host is {host!r}, which this machine does not know: {error}") from error
            except PermissionError:
                raise ValueError(f"--port {port} needs rights that you do not have; name one above 1023") from None
            except OSError as error:
                reason = error
    raise ValueError(f"no port from {first} to {last} is free on {host} ({reason}); name another with --port")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo demo", description=main.__doc__)
    add = parser.add_argument
    add(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a checkpoint to compare, and the name to show: embedded name, folder (a run's checkpoints/step_N or a delta) or hub name; may be "
        "given several times, the first is the one to start from (default: the embedded ones)",
    )
    add(
        "--runs",
        type=home_path,
        default=Path("runs"),
        help="where run folders are, and live runs go (default: %(default)s)",
    )
    add("--reward", default="geneval", help="a registered reward, or module:callable (default: %(default)s)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    add("--port", type=int, default=7860, help="where it is in use, the next free one is taken (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, ...; auto takes a GPU if there is one")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="(default: %(default)s)")
    add(
        "--threads",
        type=positive,
        default=1,
        help="CPU threads; more do not help the embedded checkpoints, and are far slower where the machine has other work (default: %(default)s)",
    )
    add("--keep", type=positive, default=5, help="checkpoints in memory at once (default: %(default)s)")
    add("--sessions", type=positive, default=100, help="browser windows whose state is kept (default: %(default)s)")
    return parser
