"""File formats: each module reads and writes a flat {name: array}."""
