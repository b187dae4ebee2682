"""The eighteenth set: layers as users write them, with the kinds of mistakes that bug reports tell of."""
