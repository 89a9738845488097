"""`python -m lowbitvm` is the `lowbitvm` command."""

from lowbitvm.cli import main

main()
