"""Colours of images that are drawn on white. (A page, light or dark, has its own: `page`.)"""

COLOURS = GREEN, RED, BLUE = "#0b6e4f", "#c0392b", "#1f4e8c"
OCHRE = "#b5651d"
