// Messages to ids, as `FlashSlothProcessor.apply_chat_template` makes them.

import { Template } from "../vendor/jinja.js";
import { Tokenizer } from "../vendor/tokenizers.js";
import { Refusal } from "../refusal.js";

/** Writes prompts and reads answers. */
export class Prompt {
  /**
   * @param {object} parts tokenizer.json, tokenizer_config.json and processor_config.json as objects, and the text of
   *   chat_template.jinja.
   */
  constructor({ tokenizer, tokenizerConfig, processor, template }) {
    this.tokenizer = new Tokenizer(tokenizer, tokenizerConfig);
    this.template = new Template(template);
    this.processor = processor;
    this.tokens = namedTokens(tokenizerConfig);
  }

  /**
   * The prompt of a conversation that ends with a question.
   *
   * @param {{role: string, content: {type: string, text?: string}[]}[]} messages
   * @param {number[]} tokensOfImages visual tokens of each image, in reading order.
   * @returns {number[]} ids, placeholders expanded.
   * @throws {Refusal} in the template's words for what may not be asked, such as the text of a special token.
   */
  idsOf(messages, tokensOfImages) {
    const text = this.#expand(this.#render(messages), tokensOfImages);
    // Where a template writes the first token itself, no second one is put before it, as transformers has it.
    const bos = this.tokens.bos_token;
    return this.tokenizer.encode(text, { add_special_tokens: !(bos && text.startsWith(bos)) }).ids;
  }

  /** The text of an answer's ids so far; half a character at its end is left for later. */
  textOf(ids) {
    const text = ids.length ? this.tokenizer.decode(ids, { skip_special_tokens: true }) : "";
    return text.replace(/\ufffd+$/, "").trim();
  }

  #render(messages) {
    try {
      return this.template.render({ messages, add_generation_prompt: true, ...this.tokens });
    } catch (error) {
      throw new Refusal(error.message);
    }
  }

  #expand(text, tokensOfImages) {
    const { image_token: image, query_token: query, num_query_tokens: queries } = this.processor;
    let number = 0;
    const expanded = text.replaceAll(image, () => image.repeat(tokensOfImages[number++]));
    if (number !== tokensOfImages.length) throw new Error(`${tokensOfImages.length} images, ${number} placeholders`);
    return expanded.replaceAll(query, () => query.repeat(queries));
  }
}

/** Tokens that a template may speak of by their names, such as `bos_token`. */
function namedTokens(config) {
  const named = Object.entries(config).filter(([name, value]) => name.endsWith("_token") && value);
  return Object.fromEntries(named.map(([name, value]) => [name, value.content ?? value]));
}
