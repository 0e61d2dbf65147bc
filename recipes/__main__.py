"""`python -m recipes` is the same as `recipes`."""

from recipes._cookbook.cli import main

if __name__ == "__main__":  # a worker process of a recipe imports this module
    main()
