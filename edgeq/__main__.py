"""`python -m edgeq` is the `edgeq` command."""

from edgeq.cli.main import run

if __name__ == "__main__":
    run()
