"""The fifth set: written without a look at the diagnosis; the expected answers were written before anything ran."""
