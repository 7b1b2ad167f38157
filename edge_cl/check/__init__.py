"""`edge-cl check`: memory and latency measured on this machine, with this configuration, against their budgets."""
