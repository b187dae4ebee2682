"""The kind of mistake in a wrong output or gradient: patterns, tried from the special to the general."""
