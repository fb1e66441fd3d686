"""`python -m fairkern`, which `torchrun -m fairkern` starts several times."""

from fairkern.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
