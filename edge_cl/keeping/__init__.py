"""What the daemon keeps, so that nothing learnt is lost: journal entries, checkpoints, and the way back."""
