"""Studies and ablations, and the pages generated from their results."""
