"""Kernels for CUDA, written in Triton: an optional, faster way to compute a formula of ``manualgrad.ops``.

``kernels/`` has the kernels, with the formula beside each. The modules here take and return tensors, and
``registration.py`` names the formula of each. ``launch.py`` decides whether kernels can run at all.
"""
