"""Pictures for training: the sets of the embedded pairs, and code shards of other people's pictures.

A data folder is built once (`hybrid-data emoji`, `hybrid-data fashion`), opened with `folder.DataFolder.open`, and
knows no model: pictures as uint8, one JSON line per picture, a split, and the licences of what was drawn. Code shards
(`hybrid-data codes`, `shards.CodeShards`) hold one tokenizer's codes instead. Training reads both as
`coded.CodedPictures`.
"""
