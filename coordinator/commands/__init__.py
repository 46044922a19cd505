"""The commands of `edge-coordinator`, one module each.

A command module has `HELP`, `add_arguments(parser)` and `run(args) -> exit code`; the table in `coordinator.cli` names
it. Only the command that was asked for is imported, so that none of them pays for the libraries of another.
"""
