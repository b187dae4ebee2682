"""Wrong and right Functions that were written without knowledge of the diagnosis, and the score of the diagnosis on them."""
