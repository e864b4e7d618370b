"""CogVideoX 2b, 5b and 1.5."""
