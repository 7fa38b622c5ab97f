"""The commands of `t2i-gcpo` live here, one module each with `main` and `parser`.

May import every room but `study`, `demo`, `bench` and `pretrain`. A command reads options, calls the library, prints
and writes; it computes nothing itself.
"""
