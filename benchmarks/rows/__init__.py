"""The rows of the table, by name."""
