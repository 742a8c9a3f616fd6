"""Annotations to batches.

`annotations` reads a list, `sampling` and `cropping` say which frames and pixels, `dataset` turns a record into a clip,
`order`, `loader` and `workers` turn records into batches, `augment` finishes a batch on the device.
"""
