"""firmware_bridge: from a board's bytes to samples; knows neither torch nor edge_cl."""
