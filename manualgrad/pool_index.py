"""Pooling indices of windows without a positive number; ``ops/relu_pool.py`` explains them."""

AT_ZERO, INACTIVE = 254, 255
