"""What users would have instead of this server, in a fair version, behind the same API."""
