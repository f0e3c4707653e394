// Pictures with a question each, to begin with.

import { element } from "./element.js";

/**
 * Shows the examples.
 *
 * @param {HTMLElement} place
 * @param {Files} files
 * @param {(file: File, question: string) => void} ask is called for the one that is chosen.
 */
export async function showExamples(place, files, ask) {
  const examples = await files.json("examples/examples.json");
  place.append(...examples.map(({ image, question, credit }) => {
    const source = files.url(`examples/${image}`);
    const choose = async () => ask(new File([await files.bytes(`examples/${image}`)], image), question);
    const picture = element("img", { src: source, alt: "", width: 96, height: 96, title: `Picture: ${credit}` });
    return element("li", {}, element("button", { type: "button", onclick: choose }, picture, question));
  }));
  const credits = [...new Set(examples.map(({ credit }) => credit))].join("; ");
  place.after(element("p", { className: "credits", textContent: `Pictures: ${credits}.` }));
}
