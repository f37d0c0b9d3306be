"""The data sets that training reads, a file a format."""
