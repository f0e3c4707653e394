// What the model looked at, drawn over the images as `asking/drawing.py` draws it.

import { element } from "./element.js";

const SIDE = 192;
// Near-white to dark red, through orange: more attention is darker in grey print, too.
const HEAT = [[255, 247, 236], [252, 141, 89], [127, 0, 0]];
const STRENGTH = 0.6;

/**
 * Something to open, which draws when it is opened.
 *
 * @param {{grid: [number, number], tokens: number, pooling: Float32Array[], queries: Float32Array[][]}} looked
 * @param {{preview: ImageBitmap, label: string}[]} images of the conversation so far.
 * @param {string} note stands behind the question that is opened, if it says something.
 */
export function explanationOf(looked, images, note) {
  const summary = element("summary", { textContent: `What did it look at?${note && ` (${note})`}` });
  const details = element("details", { className: "explanation" }, summary);
  details.addEventListener("toggle", () => {
    details.append(...images.map((image, number) => drawn(image, looked, number)));
    details.scrollIntoView({ block: "nearest" });
  }, { once: true });
  return details;
}

function drawn({ preview, label }, { grid, pooling, queries }, number) {
  const mean = queries[number][0].map((_, at) => average(queries[number].map((query) => query[at])));
  const maps = [
    ["pooling", pooling[number]],
    ["all queries", mean],
    ...queries[number].map((query, at) => [`query ${at + 1}`, query]),
  ];
  return element("div", { className: "maps", role: "group", ariaLabel: label }, ...maps.map(([title, heat]) =>
    element("figure", {}, overlay(preview, heat, grid, `${title} of ${label}`), element("figcaption", {}, title)),
  ));
}

const average = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** The image in grey under a map of heat, scaled to its own maximum. */
function overlay(preview, heat, [rows, columns], label) {
  const canvas = element("canvas", { width: SIDE, height: SIDE, role: "img", ariaLabel: label });
  const context = canvas.getContext("2d");
  context.drawImage(preview, 0, 0, SIDE, SIDE);
  const picture = context.getImageData(0, 0, SIDE, SIDE);
  const largest = Math.max(1e-9, ...heat);
  for (let y = 0, at = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++, at += 4) {
      const patch = Math.floor((y * rows) / SIDE) * columns + Math.floor((x * columns) / SIDE);
      const [red, green, blue] = picture.data.subarray(at, at + 3);
      const grey = 0.299 * red + 0.587 * green + 0.114 * blue;
      colourOf(heat[patch] / largest).forEach((value, channel) => {
        picture.data[at + channel] = (1 - STRENGTH) * grey + STRENGTH * value;
      });
    }
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

function colourOf(share) {
  const [from, to] = share < 0.5 ? [HEAT[0], HEAT[1]] : [HEAT[1], HEAT[2]];
  const along = share < 0.5 ? 2 * share : 2 * share - 1;
  return from.map((value, channel) => value + (to[channel] - value) * along);
}
