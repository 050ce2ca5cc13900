"""Check and time everything that runs on a GPU, in one command of at most eight minutes: `python -m benchmarks gpu`."""
