"""`python -m sapo.cli` is `sapo`."""

from sapo.cli.app import main

if __name__ == "__main__":
    main()
