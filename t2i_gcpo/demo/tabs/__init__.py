"""The tabs of the demo's page are at home here, one file each: components and their events.

What an event does belongs to `sessions` or to the library.
"""
