"""Serve the page: a free port, the guard in front, a password beyond this machine, and no proxy in between."""

from __future__ import annotations

import hmac
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rewards.remote.hosts import is_loopback

if TYPE_CHECKING:
    import gradio

#: Ports that are tried after the one that was asked for.
TRIES = 20
#: Where a password may stand, other than in a file.
PASSWORD_VARIABLE = "T2I_GCPO_DEMO_PASSWORD"
#: How the names of the variables end that send a program's requests to another machine, in any case of letters.
_PROXY = "_proxy"


def launch(blocks: gradio.Blocks, *, host: str, port: int, password: str | None = None, sessions: int = 100) -> str:
    """Start serving in threads of its own, and return the address.

    ValueError: a host beyond this machine without a password.
    """
    import gradio
    from starlette.middleware import Middleware

    from t2i_gcpo.demo import html_parts
    from t2i_gcpo.demo.guard import Guard

    check_reach(host, password)
    local = is_loopback(host) and password is None
    with without_proxies():  # Gradio asks its own address whether it answers
        _, url, _ = blocks.launch(
            server_name=host,
            server_port=port,
            auth=None if password is None else lambda _, given: hmac.compare_digest(given.encode(), password.encode()),
            auth_message="Any user name, and the password that the demo was started with.",
            app_kwargs={"middleware": [Middleware(Guard, local=local)]},
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            mcp_server=False,
            ssr_mode=False,
            show_error=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            state_session_capacity=sessions,
            css=html_parts.CSS,
            theme=gradio.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
    return str(url)


def check_reach(host: str, password: str | None) -> None:
    """Check that a server that other machines reach has a password. ValueError: it has none."""
    if password is None and not is_loopback(host):
        raise ValueError(
            f"--host {host} can be reached from other machines, and whoever reaches the demo can train and read runs: "
            f"give it a password in the environment variable {PASSWORD_VARIABLE} or in a "
            "file (--password-file), or leave --host out"
        )


def read_password(file: Path | None) -> str | None:
    """Read the password from a file, else from the environment; None where there is none.

    ValueError: the file is empty.
    """
    if file is not None:
        password = file.read_text(encoding="utf-8").strip()
        if not password:
            raise ValueError(f"--password-file {file} is empty; write the password into it")
        return password
    return os.environ.get(PASSWORD_VARIABLE) or None


@contextmanager
def without_proxies() -> Iterator[None]:
    """Keep the requests of this process from going through a proxy, inside: one of the environment or the system's."""
    taken = {name: os.environ.pop(name) for name in [*os.environ] if name.lower().endswith(_PROXY)}
    os.environ["no_proxy"] = "*"  # where this is set, the system is not asked
    try:
        yield
    finally:
        del os.environ["no_proxy"]
        os.environ.update(taken)


def free_port(host: str, first: int) -> int:
    """Return `first`, or the next port that is free.

    ValueError: none of `TRIES` is, there is no such port, or the host is not this machine's.
    """
    if not 0 < first < 65536:
        raise ValueError(f"--port is {first}; allowed are 1 to 65535")
    last = min(first + TRIES, 65535)
    for port in range(first, last + 1):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # A port whose last server has just ended is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
