"""Building blocks, each written once. Dimensions, used as suffixes throughout:

B batch, P image tokens, T new tokens, L cache length, S attended tokens (P, T or filled part of L), D width, N heads,
H head width, V vocabulary, C channels.
"""
