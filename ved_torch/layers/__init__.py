"""Building blocks, each written once. Dimensions, used as suffixes throughout:

B batch, P image tokens, W windows, T new tokens, L cache length, S attended tokens (P, T, a window's or the filled part
of L), D width, N heads, H head width, V vocabulary, C channels.
"""
