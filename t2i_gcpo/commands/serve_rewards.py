"""Serve a scorer over HTTP, for `--reward.name remote` of training runs here or elsewhere."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import threading

from rewards.remote.client import TOKEN_VARIABLE
from rewards.remote.protocol import Limits
from rewards.remote.server import RewardServer
from t2i_gcpo.commands.options import build
from t2i_gcpo.commands.options.number_types import port, positive
from t2i_gcpo.commands.options.shared import add_reward_option, take_reward

#: Seconds between two looks at whether the scorer lives.
PULSE = 0.5


def main(argv: list[str]) -> int:
    """Serve a scorer over HTTP until Ctrl-C or SIGTERM; requests that have arrived are finished first."""
    if {"-h", "--help"} & set(argv):
        parser().parse_args(["--help"])
    options, rest = take_reward(argv)
    args = parser().parse_args(rest)
    token = args.token if args.token is not None else os.environ.get(TOKEN_VARIABLE) or None
    limits = Limits(
        body=args.max_body_mib * 2**20, images=args.max_images, pixels=args.max_pixels, prompt=args.max_prompt
    )
    server = RewardServer(
        build.reward(options),
        name=options.name,
        options=options.options,
        host=args.host,
        port=args.port,
        token=token,
        batch=args.batch,
        limits=limits,
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    stop = threading.Event()
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        print(f"serving {options.name} at {server.url}; Ctrl-C stops it", flush=True)
        print(f"train with it: t2i-gcpo train --reward.name remote --reward.url {shlex.quote(server.url)}", flush=True)
        while not stop.wait(PULSE):
            if not server.alive:
                raise ChildProcessError(f"the scorer {options.name} ended its own thread; serve it again")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)  # the next Ctrl-C does not wait
        server.close()
    print("stopped", flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2i-gcpo serve-rewards", description=main.__doc__)
    add, limits = parser.add_argument, Limits()
    add_reward_option(parser)
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; any but this machine's own needs a token (default: %(default)s)",
    )
    add("--port", type=port, default=8765, help="0 takes a free one and prints it (default: %(default)s)")
    add("--token", help=f"what clients must send; better in the environment variable {TOKEN_VARIABLE}, on both sides")
    add(
        "--batch",
        type=positive,
        default=64,
        help="images the scorer gets at once, of one or more requests (default: 64)",
    )
    add("--max-body-mib", type=positive, default=limits.body // 2**20, help="largest request (default: %(default)s)")
    add("--max-images", type=positive, default=limits.images, help="images of a request (default: %(default)s)")
    add("--max-pixels", type=positive, default=limits.pixels, help="pixels of an image (default: %(default)s)")
    add("--max-prompt", type=positive, default=limits.prompt, help="characters of a prompt (default: %(default)s)")
    return parser
