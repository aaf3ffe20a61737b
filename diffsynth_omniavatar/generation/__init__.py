"""From a portrait or a video, speech and a text to a video."""
