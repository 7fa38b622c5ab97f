"""Options of the commands: their declaration, the YAML and the command line, the objects that are built from them, and their reference page.

No class of the library sees these dataclasses; `build` takes them apart.
"""
