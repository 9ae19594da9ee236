"""`python -m capacity_assets.cli`: the command for environments without scripts on the path."""

from capacity_assets.cli.main import main

main()
