"""What the package carries: the reference checkpoint and prompts."""
