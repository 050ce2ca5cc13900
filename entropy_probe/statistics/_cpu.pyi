TILE: int
"""Keys in a tile: biases are padded to a multiple of it."""

BARRED: float
"""What stands for the logit of a barred key, bits."""

def statistics(
    addresses: tuple[int, ...],
    sizes: tuple[int, int, int, int, int],
    query_strides: tuple[int, ...],
    key_strides: tuple[int, ...],
    scale: float,
    limit: float,
    threads: int,
    /,
) -> bool: ...
