"""From a learner to a snapshot that others may rely on: made, verified, compared with the one before it, published."""
