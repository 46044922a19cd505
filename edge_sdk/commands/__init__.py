"""The commands of `edge-sdk`, one module each.

A command module has `add_arguments(parser)` and `run(args) -> exit code`; the table in `edge_sdk.cli` names it. Only
the command that was asked for is imported, so that `edge-sdk check` starts at once and none pays for another's
libraries.
"""
