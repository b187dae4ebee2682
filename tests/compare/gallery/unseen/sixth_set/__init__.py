"""The sixth set: written like the fifth, and not shown to the diagnosis before its last measurement."""
