"""How each command is called: its options and its help, and nothing else.

What a command does is in the module of its name in `kpx.cli`, and imported when it is done. So `kpx --help`, the help
of a command and a shell that completes words import little more than click.
"""
