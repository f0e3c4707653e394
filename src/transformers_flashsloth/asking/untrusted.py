"""What is read of images from strangers, wherever they come in."""

# Pixels together: 200 MB in memory.
MAX_PIXELS = 50_000_000
# Pillow knows more formats, some of which run other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
