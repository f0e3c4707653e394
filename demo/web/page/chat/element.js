/**
 * An element of the page.
 *
 * @param {string} tag
 * @param {object} properties such as `className`, `textContent` or `ariaLabel`; those that begin with "on" listen.
 * @param {...(Node | string)} children
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** A preview as something to look at. */
export function canvasOf(preview, label) {
  const canvas = element("canvas", { width: preview.width, height: preview.height, role: "img", ariaLabel: label });
  canvas.getContext("2d").drawImage(preview, 0, 0);
  return canvas;
}
