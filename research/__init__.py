"""Studies and ablations, and the pages made of their results."""
