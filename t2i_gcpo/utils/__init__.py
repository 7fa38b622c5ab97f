"""Small tools that know nothing of this field: files, checks, devices, clocks, interrupts, nested mappings, pictures.

May import nothing of ours. A function that mentions a prompt, a token or a reward belongs elsewhere.
"""
