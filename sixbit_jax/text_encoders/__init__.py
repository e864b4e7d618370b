"""Prompt encoders and tokenizers: from words to what the networks read."""
