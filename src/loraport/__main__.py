"""`python -m loraport` is `loraport`."""

from loraport.cli import main

main()
