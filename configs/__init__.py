"""Runnable pairings and training runs, as YAML."""
