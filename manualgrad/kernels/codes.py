"""The codes of a window in which nothing is positive; ``functions/fused.py`` says what they mean."""

ZERO, DEAD = 254, 255
