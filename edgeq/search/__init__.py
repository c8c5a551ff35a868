"""Bits allocated to layers against what they cost on the user's own device.

`run` is the story of the command, `engine` of the search; `problem`, `table` and `front` are plain data and arithmetic,
`layers` and `workbench` know graphs, sessions and devices.
"""
