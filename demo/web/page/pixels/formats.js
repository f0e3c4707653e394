// Which kind of image a file is, told by its first bytes: names and types of files lie.

import { Refusal } from "../refusal.js";

export const FORMATS = ["PNG", "JPEG", "WebP", "GIF", "BMP"];
// Pixels together, as `asking/untrusted.py` allows.
export const MAX_PIXELS = 50_000_000;

const ascii = (bytes, from, to) => String.fromCharCode(...bytes.subarray(from, to));

/** One of `FORMATS`, or null. */
export function formatOf(bytes) {
  if (ascii(bytes, 0, 8) === "\x89PNG\r\n\x1a\n") return "PNG";
  if (ascii(bytes, 0, 3) === "\xff\xd8\xff") return "JPEG";
  if (ascii(bytes, 0, 4) === "RIFF" && ascii(bytes, 8, 12) === "WEBP") return "WebP";
  if (/^GIF8[79]a$/.test(ascii(bytes, 0, 6))) return "GIF";
  if (ascii(bytes, 0, 2) === "BM") return "BMP";
  return null;
}

/** Throws a `Refusal` where an image is empty or has more pixels than are read. */
export function checkSize(width, height) {
  if (!width || !height) throw new Refusal(`it is ${width} x ${height} pixels: an image needs at least one pixel`);
  if (width * height > MAX_PIXELS) {
    throw new Refusal(`it is too large: an image may have ${MAX_PIXELS.toLocaleString("en")} pixels`);
  }
}

/** Whether a file of a format that the browser decodes goes to its end; browsers paint the rest grey instead. */
export function isWhole(bytes, format) {
  if (format === "JPEG") return endsBehindScan(bytes);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (format === "WebP") return bytes.length >= view.getUint32(4, true) + 8;
  if (format === "BMP") return bytes.length >= 54 && bytes.length >= view.getUint32(2, true);
  return true;
}

/** Whether a JPEG has its end marker behind its first scan: thumbnails before it have markers of their own. */
function endsBehindScan(bytes) {
  let at = 2;
  while (at + 4 <= bytes.length && bytes[at] === 0xff) {
    if (bytes[at + 1] === 0xff) {
      at += 1; // a fill byte
      continue;
    }
    if (bytes[at + 1] === 0xda) {
      for (let end = bytes.length - 2; end > at; end--) {
        if (bytes[end] === 0xff && bytes[end + 1] === 0xd9) return true;
      }
      return false;
    }
    at += 2 + bytes[at + 2] * 256 + bytes[at + 3];
  }
  return false;
}
