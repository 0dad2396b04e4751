"""Decoding as one compiled loop: processors change scores, a strategy chooses tokens, the loop feeds them."""
