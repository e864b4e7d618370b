"""Reading files that somebody else wrote: of what kind, how large, and in which words.

Imported by everything that opens such a file; imports nothing of this package.
"""
