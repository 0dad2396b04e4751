"""Weights between Hugging Face's names and formats and the parameters of `ved_flax` and `ved_torch`."""
