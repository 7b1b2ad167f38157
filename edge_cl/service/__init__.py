"""What the running daemon shows of itself. Nothing here changes what it does."""
