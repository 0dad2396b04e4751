"""Decoding as one loop: processors change scores, a strategy chooses tokens, the loop feeds them."""
