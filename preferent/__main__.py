"""`python -m preferent` is `preferent`."""

from preferent.cli import main

main()
