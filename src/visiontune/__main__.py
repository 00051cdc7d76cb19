"""`python -m visiontune`, also under torchrun."""

from visiontune.cli import main

if __name__ == "__main__":
    main()
