"""Fast versions of formulas, each under its formula's name; the formula says what it computes.

From the bottom up: ``values.py`` and ``vectors.py`` are the language that kernels are written in, ``tiles.py``
its idioms; ``conv_pool_forward.py``, ``conv_pool_backward.py`` with its two sums, ``conv_pool_weights.py``,
``products.py``, ``relu.py``, ``class_rows.py`` and ``descent_rows.py`` are the kernels; ``teams.py`` and
``compiled.py`` make machine code of them, ``parallel.py`` runs one and ``program.py`` many; ``machine.py`` knows
which there is. ``network_stages.py`` strings them together. ``conv_pool.py``, ``rows.py``, ``network.py`` and
``descent.py`` are the doors, where tensors are looked at; ``fused.py`` and ``operators.py`` lead
``functions/fused.py`` to the first of them. ``cpu.py`` has formulas rearranged, which need no compiler."""

from manualgrad.kernels.machine import Available, available, choose

__all__ = ["Available", "available", "choose"]
