"""Encoders of prompts (and of the picture beside one), and tokenizers."""
