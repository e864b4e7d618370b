"""Mutated files: every one of them is a clean error or the same result."""
