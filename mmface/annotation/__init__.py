"""Annotation: from a photograph to its mask, its sketch and its captions."""
