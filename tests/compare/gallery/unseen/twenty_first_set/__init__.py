"""The twenty-first set: each wrong Function is written out whole, by five people, without a look at compare."""
