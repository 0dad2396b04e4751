"""Programs compiled ahead of time for a TPU that is not there, and what the compiler says of them."""
