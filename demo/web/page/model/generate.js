import { Refusal } from "../refusal.js";

/**
 * Greedy decoding: yields the tokens of an answer one by one, the last one that ends it included.
 *
 * @param {Graphs} graphs
 * @param {number[]} prompt ids.
 * @param {object[]} encoded images of the prompt, in reading order.
 * @param {{maxNewTokens: number, endIds: number[], context: number}} limits
 * @param {string[]} others outputs of the decoder for the prompt, which `onPrompt` gets.
 * @throws {Refusal} if the prompt leaves no room for an answer.
 */
export async function* generate(graphs, prompt, encoded, limits, others = [], onPrompt = () => {}) {
  const { maxNewTokens, endIds, context } = limits;
  if (prompt.length >= context) {
    throw new Refusal(
      `The conversation takes ${prompt.length} tokens, but the model reads at most ${context - 1}: start a new one.`,
    );
  }
  const images = graphs.imagesOf(encoded), cache = graphs.keyValues();
  const ids = [...prompt], longest = Math.min(prompt.length + maxNewTokens, context);
  try {
    while (ids.length < longest) {
      const isPrompt = ids.length === prompt.length;
      const outputs = await graphs.step(ids, images, cache, isPrompt ? others : []);
      if (isPrompt) onPrompt(outputs);
      const token = largest(outputs.logits);
      ids.push(token);
      yield token;
      if (endIds.includes(token)) return;
    }
  } finally {
    cache.dispose();
  }
}

function largest(logits) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}
