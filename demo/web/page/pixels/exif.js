// EXIF orientation. Browsers turn JPEGs by it, and other formats or not; so it is read here, and hidden from them.

const ORIENTATION = 0x0112, SHORT = 3;
const EXIF = [0x45, 0x78, 0x69, 0x66, 0, 0]; // "Exif" and two zeros, which stand before EXIF data in some formats

/**
 * Takes the orientation out of a file.
 *
 * @param {Uint8Array} bytes of a whole file; EXIF data are made unreadable in them.
 * @param {string} format one of `FORMATS`.
 * @returns {number} 1 to 8; 1 where the file says none.
 */
export function takeOrientation(bytes, format) {
  const [start, end, label] = (format === "JPEG" ? inJpeg(bytes) : format === "WebP" ? inWebp(bytes) : null) ?? [];
  if (start === undefined) return 1;
  const orientation = orientationOf(bytes.subarray(start, end));
  bytes[label] ^= 0x20; // another name, which no decoder knows
  return orientation;
}

/** The orientation in EXIF data, 1 to 8; 1 where there is none. */
export function orientationOf(bytes) {
  if (EXIF.every((byte, at) => bytes[at] === byte)) bytes = bytes.subarray(EXIF.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    const little = view.getUint16(0) === 0x4949;
    const at = view.getUint32(4, little), count = view.getUint16(at, little);
    for (let entry = at + 2; entry < at + 2 + 12 * count; entry += 12) {
      if (view.getUint16(entry, little) !== ORIENTATION || view.getUint16(entry + 2, little) !== SHORT) continue;
      const value = view.getUint16(entry + 8, little);
      return value >= 1 && value <= 8 ? value : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // cut short
  }
  return 1;
}

/** Where EXIF data begin and end, and where a byte of their name is; in the segments before a JPEG's first scan. */
function inJpeg(bytes) {
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda; ) {
    if (bytes[at + 1] === 0xff) {
      at += 1; // a fill byte
      continue;
    }
    const end = at + 2 + bytes[at + 2] * 256 + bytes[at + 3];
    if (bytes[at + 1] === 0xe1 && EXIF.every((byte, i) => bytes[at + 4 + i] === byte)) return [at + 4, end, at + 4];
    at = end;
  }
  return null;
}

function inWebp(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const size = view.getUint32(at + 4, true), end = at + 8 + size;
    if (view.getUint32(at) === 0x45584946) return [at + 8, end, at]; // "EXIF"
    at = end + (size & 1);
  }
  return null;
}
