"""Draw every result: a figure and the data behind it."""
