"""The epsilon set: mixed everyday code; each wrong Function is written out whole, without a look at compare."""
