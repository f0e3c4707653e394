// Pixels turned upright.

/** Pixels `{rgb, width, height}` upright, by an `orientation` of EXIF, 1 to 8. */
export function turnUpright({ rgb, width, height }, orientation) {
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
