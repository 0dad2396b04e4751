"""Training: one pure step, whatever it runs on, and the loop around it."""
