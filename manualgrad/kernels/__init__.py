"""Fast versions of formulas, each under its formula's name; the formula says what it computes."""
