"""The command line: one file per command, `main` runs them, `console` speaks.

Modules here stay light; whatever needs torch is imported inside a command's body, so that help and tables are instant.
"""
