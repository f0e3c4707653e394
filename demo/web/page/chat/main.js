// The page: a form to ask with, and a log of what was said.

import { Files } from "../files/files.js";
import { Refusal } from "../refusal.js";
import { offerCamera } from "./camera.js";
import { Conversation } from "./conversation.js";
import { listenForFiles } from "./drops.js";
import { showExamples } from "./examples.js";
import { explanationOf } from "./explanation.js";
import { PendingImages } from "./images.js";
import { Log } from "./log.js";
import { ModelClient } from "./model_client.js";
import { keepForOffline } from "./offline.js";
import { VisualTokens } from "./visual_tokens.js";

const at = (id) => document.getElementById(id);
const form = at("ask"), input = at("question"), send = at("send"), stop = at("stop");
const log = new Log(at("log"));
const model = new ModelClient(showProgress);
const pending = new PendingImages(at("pending"), model, refuse);
const visualTokens = new VisualTokens(at("visual-tokens"));
let conversation = new Conversation();
let answering = false;

function showProgress({ loaded, total }) {
  const bar = at("loading").querySelector("progress");
  bar.max = total, bar.value = loaded;
  at("loaded").textContent = `Loading the model: ${megabytes(loaded)} of ${megabytes(total)} MB`;
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

function refuse(error) {
  const fault = `Something broke inside this page: ${error.message}. Reload it, and tell its makers if it stays so.`;
  log.refuse(error instanceof Refusal ? error.message : fault);
}

/** Asks what is in the form; a question that cannot be asked goes back there. */
async function ask() {
  const question = input.value.trim();
  if (answering) return;
  log.forgive();
  if (!question) return refuse(new Refusal("Type a question first."));
  setAnswering(true);
  const asked = conversation, tokens = visualTokens.chosen;
  let shown;
  try {
    const count = pending.items.length;
    asked.pending = await pending.all();
    if (asked.pending.length < count) return; // one was refused, which is said already
    const { messages, images } = asked.asking(question);
    shown = log.ask(question, asked.pending);
    input.value = "";
    const numbers = images.map(({ number }) => number);
    const { text, looked } = await model.answer(messages, numbers, tokens, (grown) => shown.grow(grown));
    asked.remember(question, asked.pending, text);
    shown.end(text, ...(looked ? [explanationOf(looked, images, visualTokens.noteOf(looked.tokens))] : []));
    if (asked === conversation) pending.clear();
  } catch (error) {
    shown?.remove();
    if (asked !== conversation) return;
    input.value ||= question;
    refuse(error);
  } finally {
    setAnswering(false);
  }
}

function setAnswering(is) {
  answering = is;
  send.hidden = is;
  stop.hidden = !is;
  if (!is) input.focus();
}

function startAnew() {
  model.stop().catch(refuse);
  for (const { number } of conversation.turns.flatMap(({ images }) => images)) model.forget(number).catch(refuse);
  conversation = new Conversation();
  pending.clear();
  log.clear();
  input.value = "";
  document.body.classList.remove("talking");
}

function add(files) {
  log.forgive();
  document.body.classList.add("talking");
  pending.add(files);
  input.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  document.body.classList.add("talking");
  ask();
});
input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
stop.addEventListener("click", () => model.stop().catch(refuse));
at("anew").addEventListener("click", startAnew);
at("choose").addEventListener("click", () => at("files").click());
for (const chooser of [at("files"), at("capture")]) {
  chooser.addEventListener("change", () => {
    add([...chooser.files]);
    chooser.value = ""; // so that the same file can be chosen again
  });
}
listenForFiles(add);
offerCamera({ button: at("camera"), dialog: at("viewfinder"), input: at("capture") }, add, refuse);

const root = new URL("../", import.meta.url);
try {
  const opening = model.open(new URLSearchParams(location.search).get("backend"));
  opening.catch(() => {}); // awaited below
  const files = await Files.open(root);
  await showExamples(at("examples"), files, (file, question) => {
    startAnew();
    add([file]);
    input.value = question;
    form.requestSubmit();
  });
  visualTokens.offer(await opening);
  at("loading").hidden = true;
  document.body.dataset.state = "ready";
  await keepForOffline(files);
} catch (error) {
  at("loading").hidden = true;
  document.body.dataset.state = "broken";
  refuse(error);
}
