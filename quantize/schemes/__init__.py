"""The quantisation schemes, a file each."""
