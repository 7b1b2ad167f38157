"""A recorded stream through the same learner that the daemon runs: data, streams, protocol, results."""
