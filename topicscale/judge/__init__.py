"""What embedding models are judged by, one task a file: functions of texts and an ``encode``, without an engine and without a store.

A task's measures are a mapping of names to numbers. Nothing here trains, and nothing is fetched.
"""
