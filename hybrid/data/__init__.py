"""The picture sets the embedded pairs are trained on.

A data folder is built once (`hybrid-data emoji`, `hybrid-data fashion`), opened with `folder.DataFolder.open`, and
knows no model: pictures as uint8, one JSON line per picture, a split, and the licences of what was drawn.
"""
