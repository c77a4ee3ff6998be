"""Faces as photographs show them: turned, cropped, covered; sketched in several hands."""
