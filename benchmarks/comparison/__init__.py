"""This server beside other servers and other settings, measured in one run."""
