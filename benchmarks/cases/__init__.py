"""The cases that entries of the table build: candidates that compute the same thing, ours among them."""
