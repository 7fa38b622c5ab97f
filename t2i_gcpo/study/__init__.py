"""Studies: several arms with several seeds, trained as commands and pooled in one table.

May import `reports`, `commands` and what lies below them. A study trains through `t2i-gcpo train` and has no training
code of its own.
"""
