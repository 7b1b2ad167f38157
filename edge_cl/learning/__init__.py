"""The arithmetic wing: arrays in, arrays out. No files, no config, no clock, no thread."""
