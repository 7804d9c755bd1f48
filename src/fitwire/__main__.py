"""``python -m fitwire``: the command line, where the script is not on the path."""

from fitwire.cli import main

if __name__ == "__main__":
    main()
