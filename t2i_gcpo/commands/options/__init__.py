"""The options of the commands: how they are declared, read, turned into objects, and listed in the reference.

No class of the library sees these dataclasses; `build` takes them apart.
"""
