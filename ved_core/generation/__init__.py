"""What decoding does, for both frameworks: its options, where they come from, and the plan that a loop follows."""
