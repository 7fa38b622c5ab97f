"""The tabs of the demo's page, one file each: components and their events.

What an event does belongs to `sessions` or to the library.
"""
