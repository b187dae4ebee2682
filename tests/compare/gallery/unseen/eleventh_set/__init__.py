"""The eleventh set: mistakes as other projects report them, written without a look at the diagnosis."""
