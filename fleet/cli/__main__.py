"""Lets ``python -m garrison.fleet.cli`` be the command line too."""

from garrison.fleet.cli.app import main

main()
