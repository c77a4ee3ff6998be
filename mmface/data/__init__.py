"""Data: rendered faces, the stores that hold what training reads, and their samples."""
