"""A model behind HTTP: requests that arrive together are one compiled call."""
