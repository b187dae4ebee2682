"""The codes of a window in which nothing is positive; ``ops/conv_relu_pool.py`` says what they mean."""

ZERO, DEAD = 254, 255
