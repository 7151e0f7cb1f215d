"""`python -m edgeport`: the command without its script."""

from edgeport.cli import main

main()
