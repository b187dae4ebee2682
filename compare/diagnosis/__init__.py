"""What kind of wrong a wrong gradient is: patterns, from the special to the general, and the words for them."""
