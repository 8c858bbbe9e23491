"""`python -m preferent` is `preferent`."""

from preferent.cli.main import main

main()
