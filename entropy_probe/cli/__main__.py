"""Run the command line: `python -m entropy_probe.cli`."""

from entropy_probe.cli.main import main

main()
