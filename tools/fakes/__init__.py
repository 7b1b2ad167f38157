"""A board that is not there, with faults on request; see ../fake_board.py."""
