"""What both frameworks share: configs, image and text processing, checkpoint lookup, errors."""
