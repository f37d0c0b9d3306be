"""Replicas behind a router, while engines and servers are killed and restarted: is anything lost?"""
