"""`python -m kpx`."""

from kpx.cli import main

main()
