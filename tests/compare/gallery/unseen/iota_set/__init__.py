"""The iota set: each wrong Function is written out whole, as in a user's file, without a look at compare."""
