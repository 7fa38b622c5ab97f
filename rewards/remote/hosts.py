"""Says which addresses and host names mean this machine: what a server without a password may answer to.

Used by the reward server and by the demo. A web page can make its own host name point at 127.0.0.1 (DNS rebinding) and
then talk to a server here as if it were its own; the Host header of such a request still has the page's name.
"""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether `host`, an address or a name without a port, is this machine and no other."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def is_local_host_header(header: str) -> bool:
    """Return whether the value of a Host header names this machine.

    These are localhost, 127.0.0.1 or [::1], with any port or none.

    The port is free, as tunnels (`ssh -L`) forward from another one.
    """
    host = header.strip()
    if host.startswith("["):
        address, closed, rest = host[1:].partition("]")
        return bool(closed) and _is_port(rest) and ":" in address and is_loopback(address)
    name, colon, port = host.partition(":")
    return _is_port(colon + port) and is_loopback(name)


def _is_port(text: str) -> bool:
    """Return whether `text` is empty, or a colon and digits."""
    return not text or (text[0] == ":" and text[1:].isascii() and (text[1:].isdigit() or text == ":"))
