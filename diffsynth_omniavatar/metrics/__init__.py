"""Figures of videos."""
