"""The subcommands of `sixbit`, one file each.

A command module has `DESCRIPTION`, `EPILOG` (an example), `add_arguments(parser)` and
`run(args) -> exit status`. Heavy imports stay inside `run`, so that help is instant.
"""
