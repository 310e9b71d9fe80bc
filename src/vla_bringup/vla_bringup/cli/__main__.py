"""Entry point."""

from vla_bringup.cli.app import main

main()
