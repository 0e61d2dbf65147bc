"""`python -m recipes` is the same as `recipes`."""

from recipes._cookbook.cli import main

main()
