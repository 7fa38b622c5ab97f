"""Which host names and Host headers mean this machine: a page that rebinds its own name must not pass."""

from __future__ import annotations

import pytest

from rewards.remote.hosts import is_local_host_header, is_loopback


@pytest.mark.parametrize(
    ("header", "local"),
    [
        ("localhost", True),
        ("localhost:8765", True),
        ("LocalHost:1", True),
        ("localhost.", True),
        ("127.0.0.1", True),
        ("127.0.0.1:8765", True),
        ("127.1.2.3:80", True),
        ("[::1]", True),
        ("[::1]:8765", True),
        ("evil.example", False),
        ("evil.example:8765", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example@127.0.0.1", False),
        ("127.0.0.1@evil.example", False),
        ("127.0.0.1:80@evil.example", False),
        ("localhost:80:80", False),
        ("localhost:abc", False),
        ("localhost evil.example", False),
        ("localhost,evil.example", False),
        ("", False),
        ("0.0.0.0:8765", False),
        ("192.0.2.1", False),
        ("[::]", False),
        ("[::1", False),
        ("[127.0.0.1]", False),
        ("[::1]evil.example", False),
        ("2130706433", False),
    ],
)
def test_host_headers(header: str, local: bool) -> None:
    assert is_local_host_header(header) is local


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("", False), ("0.0.0.0", False), ("example.org", False)],
)
def test_addresses(host: str, local: bool) -> None:
    assert is_loopback(host) is local
