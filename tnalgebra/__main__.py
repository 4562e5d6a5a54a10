"""`python -m tnalgebra` is the command `tnalgebra`."""

from .command import main

if __name__ == "__main__":
    main()
