"""The tenth set: mistakes that people report of custom Functions, written without a look at the diagnosis."""
