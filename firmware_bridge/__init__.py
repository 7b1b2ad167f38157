"""firmware_bridge: from a board's bytes to samples."""
