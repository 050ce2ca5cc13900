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
