"""Small images as bytes and as `data:` URIs."""

import base64
import struct
import zlib
from io import BytesIO

from PIL import Image


def encoded(color: str = "blue", file_format: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new("RGB", (20, 10), color).save(file, file_format)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A file that claims a size and holds no pixels."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
