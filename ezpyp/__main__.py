"""`python -m ezpyp`: the same as the command `ezpyp`."""

from ezpyp.cli.main import main

main()
