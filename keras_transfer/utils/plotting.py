"""Colors of plots on a white background."""

COLORS = GREEN, RED, BLUE = "#0b6e4f", "#c0392b", "#1f4e8c"
OCHRE = "#b5651d"
