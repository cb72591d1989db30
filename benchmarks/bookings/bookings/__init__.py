"""A booking platform: organisations let the rooms of their properties to guests."""
