"""Replicas behind a router: whether anything is lost when they fail, and what a caller gains by staying at one."""
