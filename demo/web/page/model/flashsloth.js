// The whole model: images in, answers out.

import { Refusal } from "../refusal.js";
import { checkOptions, normalise, numViewsOf, viewsOf } from "../pixels/views.js";
import { Prompt } from "../prompt/prompt.js";
import { generate } from "./generate.js";
import { Graphs } from "./graphs.js";
import { openRuntime } from "./runtime.js";

const DIRECTORY = "exported";
const MAX_NEW_TOKENS = 256; // where generation_config.json says nothing
// As in `exported/manifest.py`: of export.json, and the decoder's output that explains an answer.
const VERSION = 2, QUERY_ATTENTION = "query_attention";

/** An exported checkpoint, opened. */
export class FlashSloth {
  constructor(graphs, prompt, configs) {
    this.graphs = graphs;
    this.prompt = prompt;
    this.options = configs.processor.image_processor;
    const { generation, config, manifest } = configs;
    /** Visual tokens of a view that an answer can have, the model's own first; null where the export says no number. */
    this.visualTokens = manifest.windows?.map(({ visual_tokens: tokens }) => tokens) ?? [null];
    this.limits = {
      maxNewTokens: generation.max_new_tokens ?? MAX_NEW_TOKENS,
      endIds: [generation.eos_token_id ?? config.text_config.eos_token_id ?? []].flat(),
      context: config.text_config.max_position_embeddings,
    };
    /** Of an image. */
    this.numViews = numViewsOf(this.options);
    const { patch_size: patch } = config.vision_config;
    const [height, width] = [patch].flat().length === 2 ? patch : [patch, patch];
    this.grid = [Math.floor(this.options.size.height / height), Math.floor(this.options.size.width / width)];
  }

  /**
   * @param {Files} files where `exported/` is what `flashsloth export` wrote.
   * @param {string | null} wanted see `openRuntime`.
   * @throws {Refusal} if a file is missing, or of a later version than this page.
   */
  static async open(files, wanted = null) {
    const at = (name) => `${DIRECTORY}/${name}`;
    const manifest = await files.json(at("export.json"));
    if (manifest.version > VERSION) {
      throw new Refusal(`The model was exported in version ${manifest.version}, this page reads up to ${VERSION}.`);
    }
    const names = ["config", "processor_config", "generation_config", "tokenizer_config", "tokenizer"];
    const runtime = openRuntime(files, manifest.precision, wanted);
    const [graphs, template, ...parsed] = await Promise.all([
      Graphs.open(runtime, files.bytes(at("image_encoder.onnx")), files.bytes(at("decoder.onnx"))),
      files.text(at("chat_template.jinja")),
      ...names.map((name) => files.json(at(`${name}.json`))),
    ]);
    const [config, processor, generation, tokenizerConfig, tokenizer] = parsed;
    checkOptions(processor.image_processor);
    const prompt = new Prompt({ tokenizer, tokenizerConfig, processor, template });
    return new FlashSloth(graphs, prompt, { config, processor, generation, manifest });
  }

  /**
   * Encodes an image, once for all questions about it and all numbers of visual tokens.
   *
   * @param {{rgb: Uint8Array, width: number, height: number}} image as `readImage` returns it.
   * @returns {Promise<object>} what `answer` takes.
   */
  encode(image) {
    return this.graphs.encode(normalise(viewsOf(image, this.options), this.options), this.options.size);
  }

  /**
   * Answers the question at the end of a conversation. The prompt is read anew each time, so that an answer depends on
   * what was said alone, and not on how it was computed.
   *
   * @param {object[]} messages as `Prompt.idsOf` takes them.
   * @param {object[]} encoded its images, in reading order.
   * @param {(text: string) => Promise<boolean>} onText is told the answer so far, and says whether to go on.
   * @param {number | null} visualTokens of a view of each image, one of `this.visualTokens`.
   * @returns {Promise<{text: string, looked: object | null}>} the answer, and what the model looked at, as `lookedAt`
   *   has it.
   */
  async answer(messages, encoded, onText, visualTokens = this.visualTokens[0]) {
    const images = encoded.map((one) => ofWindow(one, visualTokens === this.visualTokens[0] ? "" : `_${visualTokens}`));
    const ids = this.prompt.idsOf(messages, images.map(({ image_tokens: { dims } }) => dims[1]));
    const answer = [];
    const others = images.length && this.graphs.explains ? [QUERY_ATTENTION] : [];
    let looked = null;
    const onPrompt = (outputs) => (looked = others.length ? this.#lookedAt(images, outputs[QUERY_ATTENTION]) : null);
    for await (const token of generate(this.graphs, ids, images, this.limits, others, onPrompt)) {
      answer.push(token);
      if (!(await onText(this.prompt.textOf(answer)))) break;
    }
    return { text: this.prompt.textOf(answer), looked };
  }

  /**
   * Maps of each image, of the view of the whole: `{grid: [rows, columns], tokens: number, pooling: Float32Array[],
   * queries: Float32Array[][]}`, one of pooling and one of each query, a share for each patch, row by row; `tokens` are
   * those of an image.
   */
  #lookedAt(images, attention) {
    const patches = this.grid[0] * this.grid[1];
    const perImage = attention.length / images.length, perQuery = images[0].pooling_weights.data.length;
    const queries = images.map((_, image) =>
      Array.from({ length: perImage / perQuery }, (_, query) => {
        const at = image * perImage + query * perQuery;
        return attention.slice(at, at + patches);
      }),
    );
    const pooling = images.map((one) => one.pooling_weights.data.slice(0, patches));
    return { grid: this.grid, tokens: images[0].image_tokens.dims[1], pooling, queries };
  }
}

/** Of what the image encoder returned that of one window, whose outputs end in `suffix`; see `exported/manifest.py`. */
function ofWindow(encoded, suffix) {
  return {
    image_tokens: encoded[`image_tokens${suffix}`],
    image_features: encoded.image_features,
    pooling_weights: encoded[`pooling_weights${suffix}`],
  };
}
