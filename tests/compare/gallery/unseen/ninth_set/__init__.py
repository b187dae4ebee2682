"""The ninth set: mistakes of published custom Functions, written without a look at the diagnosis."""
