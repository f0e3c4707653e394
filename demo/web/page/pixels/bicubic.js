// Pillow's `Image.resize(..., BICUBIC)` on 8-bit RGB, bit for bit (libImaging/Resample.c): in fixed point, along rows and
// along columns, each rounded to 8 bits.

const BITS = 22; // PRECISION_BITS of Resample.c: 32 - 8 - 2
const SUPPORT = 2;

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/** For each of `to` pixels the first of the `from` pixels that it is made of, and their weights. */
function weights(from, to) {
  const scale = from / to, stretch = Math.max(scale, 1), support = SUPPORT * stretch;
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), from);
    const distance = (j) => (j + start - center + 0.5) * (1 / stretch);
    const values = Float64Array.from({ length: end - start }, (_, j) => bicubic(distance(j)));
    const sum = values.reduce((a, b) => a + b, 0);
    const fixed = Int32Array.from(values, (value) => {
      value = sum === 0 ? value : value / sum;
      return Math.trunc(value * (1 << BITS) + (value < 0 ? -0.5 : 0.5));
    });
    return [start, fixed];
  });
}

let last = {};

/** As `weights`; computed once for lines that come one by one. */
function lastWeights(from, to) {
  if (last.from !== from || last.to !== to) last = { from, to, table: weights(from, to) };
  return last.table;
}

/**
 * Resizes along one axis.
 *
 * @param {Uint8Array} pixels lines of pixels of 3 bytes.
 * @param {{from: number, to: number, lines: number}} size pixels of a line, those it becomes, and how many lines.
 * @param {[number, number]} steps bytes from pixel to pixel and from line to line in `pixels`.
 * @param {[number, number]} resizedSteps the same in what is returned.
 */
function resizeAlong(pixels, { from, to, lines }, [step, line], [resizedStep, resizedLine]) {
  if (from === to) return pixels; // both layouts are the same then
  const resized = new Uint8Array(3 * to * lines);
  const table = lastWeights(from, to);
  for (let l = 0; l < lines; l++) {
    for (let i = 0; i < to; i++) {
      const [start, fixed] = table[i];
      let red = 1 << (BITS - 1), green = red, blue = red; // halves, to round
      for (let j = 0, at = l * line + start * step; j < fixed.length; j++, at += step) {
        const weight = fixed[j];
        red += pixels[at] * weight, green += pixels[at + 1] * weight, blue += pixels[at + 2] * weight;
      }
      const at = l * resizedLine + i * resizedStep;
      resized[at] = clip(red), resized[at + 1] = clip(green), resized[at + 2] = clip(blue);
    }
  }
  return resized;
}

const clip = (sum) => Math.min(Math.max(sum >> BITS, 0), 255);

/** RGB of `height` rows of `width` pixels to rows of `toWidth`. */
export function resizeRows(rgb, width, height, toWidth) {
  return resizeAlong(rgb, { from: width, to: toWidth, lines: height }, [3, 3 * width], [3, 3 * toWidth]);
}

/** RGB of `height` rows of `width` pixels to `toHeight` rows. */
export function resizeColumns(rgb, width, height, toHeight) {
  return resizeAlong(rgb, { from: height, to: toHeight, lines: width }, [3 * width, 3], [3 * width, 3]);
}

/** RGB of `height` rows of `width` pixels to `toHeight` rows of `toWidth`. */
export function resize(rgb, width, height, toWidth, toHeight) {
  const lost = height - toHeight;
  if (lost > 0 && lost > 2 * (width - toWidth)) { // columns first since Pillow 13, as that is faster
    return resizeRows(resizeColumns(rgb, width, height, toHeight), width, toHeight, toWidth);
  }
  return resizeColumns(resizeRows(rgb, width, height, toWidth), toWidth, height, toHeight);
}
