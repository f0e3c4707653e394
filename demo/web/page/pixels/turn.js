// EXIF orientation: what a file says, and pixels turned upright.

const ORIENTATION = 0x0112, SHORT = 3;

/** The orientation, 1 to 8, in EXIF data that begin with a TIFF header; 1 where there is none. */
export function orientationOf(bytes) {
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

/** Pixels `{rgb, width, height, orientation}` upright, as `{rgb, width, height}`. */
export function turnUpright({ rgb, width, height, orientation }) {
  if (orientation === 1) return { rgb, width, height };
  const swapped = orientation > 4;
  const [toWidth, toHeight] = swapped ? [height, width] : [width, height];
  const flipX = [2, 3, 7, 8].includes(orientation), flipY = [3, 4, 6, 7].includes(orientation);
  const turned = new Uint8Array(rgb.length);
  for (let y = 0, to = 0; y < toHeight; y++) {
    for (let x = 0; x < toWidth; x++, to += 3) {
      let [fromX, fromY] = swapped ? [y, x] : [x, y];
      if (flipX) fromX = width - 1 - fromX;
      if (flipY) fromY = height - 1 - fromY;
      const from = 3 * (fromY * width + fromX);
      turned[to] = rgb[from], turned[to + 1] = rgb[from + 1], turned[to + 2] = rgb[from + 2];
    }
  }
  return { rgb: turned, width: toWidth, height: toHeight };
}
