"""The whole small pipeline: its world, captions, tokenizer, and how it is trained."""
