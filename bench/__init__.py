"""The benchmark: drives sessfs from outside, by its commands and its mountpoint, and imports nothing of it."""
