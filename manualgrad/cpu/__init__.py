"""Compiled CPU kernels: an optional, faster way to compute a formula of ``manualgrad.ops``.

``ir/`` is the language that kernels are written in, ``kernels/`` has the kernels. ``jit.py`` compiles them for the
instruction set that ``instruction_set.py`` selects, ``team.py`` runs them in PyTorch's OpenMP threads, and
``program.py`` runs many of them in one call. ``conv_pool.py``, ``small_kernels.py`` and ``row_kernels.py`` take and
return tensors.
"""
