"""`python -m edge_cl` is `edge-cl`."""

from edge_cl.cli import main

if __name__ == "__main__":
    main()
