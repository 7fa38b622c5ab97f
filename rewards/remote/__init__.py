"""Puts a scorer behind HTTP: the client, the pool of servers, the protocol between them, and the server.

Nothing that is sent can run code.
"""
