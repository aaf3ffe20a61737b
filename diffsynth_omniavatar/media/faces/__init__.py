"""Faces in pictures and videos: found, followed, cut out and put back."""
