// Reads what the user gives, runs the model, and shows its scores. What differs between images, texts
// and clips is in input.js; what differs between models is in model.json.
import * as ort from "./ort.wasm.bundle.min.mjs";

const SHOWN = 10; // scores of a head

const form = document.querySelector("form");
const status = document.querySelector("#status");
const answer = document.querySelector("#answer");

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function tell(text, failed = false) {
  status.textContent = text;
  status.className = failed ? "failed" : "";
}

function showHead(head, scores) {
  const isClasses = head.task !== "regression";
  const rows = [...scores].map((score, index) => ({ name: head.names[index], score }));
  if (isClasses) rows.sort((a, b) => b.score - a.score);
  const list = element("ol");
  for (const { name, score } of rows.slice(0, SHOWN)) {
    const text = isClasses ? `${(100 * score).toFixed(1)} %` : String(Number(score.toPrecision(4)));
    const row = element("li", "", { "data-name": name, "data-score": score });
    row.append(element("span", name), element("span", text));
    if (isClasses) row.append(element("meter", "", { value: score, "aria-label": name }));
    list.append(row);
  }
  return list;
}

function showAnswer(heads, outputs, preview) {
  const parts = preview ? [preview] : [];
  for (const head of heads) {
    if (heads.length > 1) parts.push(element("h2", head.name));
    parts.push(showHead(head, outputs[head.output].data));
  }
  answer.replaceChildren(...parts);
}

async function start() {
  tell("Loading the model …");
  const model = await (await fetch("model.json")).json();
  document.title = model.title;
  document.querySelector("h1").textContent = model.title;
  const input = await import("./input.js");
  ort.env.wasm.numThreads = 1; // more need headers that simple file servers do not send
  ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };
  const session = await ort.InferenceSession.create("model.onnx");
  const prepare = await input.open(model.input);
  let latest = 0; // an answer that is overtaken by a newer question is dropped

  async function ask(given) {
    const mine = ++latest;
    tell("Computing …");
    try {
      const { type, data, dims, preview } = await prepare(given);
      const outputs = await session.run({
        [session.inputNames[0]]: new ort.Tensor(type, data, dims),
      });
      if (mine !== latest) return;
      showAnswer(model.heads, outputs, preview);
      tell("");
    } catch (error) {
      if (mine !== latest) return;
      answer.replaceChildren();
      tell(`This cannot be used: ${error.message}`, true);
    }
  }

  input.draw(form, ask, element, model.input);
  form.addEventListener("submit", (event) => event.preventDefault());
  tell("Ready.");
}

start().catch((error) => tell(`The model cannot be loaded: ${error.message}`, true));
