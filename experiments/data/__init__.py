"""Data sets as arrays: embedded digits, TFDS images, citation graphs."""
