// Texts, or pairs of texts, on the page of an exported model: token ids by WordPiece, see tokens.py.
const LONGEST = 100; // characters of a word; longer ones are unknown
const CONTROLS = /[\uFFFD\p{Cf}\p{Co}\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]/gu;
const IDEOGRAPHS = "\\u{3400}-\\u{4DBF}\\u{4E00}-\\u{9FFF}\\u{F900}-\\u{FAFF}\\u{20000}-\\u{2FA1F}";
const ALONE = `[\\p{P}\\x21-\\x2f\\x3a-\\x40\\x5b-\\x60\\x7b-\\x7e${IDEOGRAPHS}]`; // each is a word
const WORDS = new RegExp(`${ALONE}|(?:(?!${ALONE})[^\\s\\p{Z}])+`, "gu");

export function draw(form, ask, element, { pair }) {
  const names = pair ? ["First text", "Second text"] : ["Text"];
  const boxes = names.map((name) =>
    element("textarea", "", { "aria-label": name, placeholder: pair ? name : "Type or paste a text" }),
  );
  const button = element("button", "Classify", { type: "submit" });
  form.append(...boxes, button);
  const send = () => ask(boxes.map((box) => box.value));
  form.addEventListener("submit", send);
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
  });
}

// The longest piece that is in the vocabulary, again and again; [unknown] if the word cannot be cut so.
function pieces(word, ids, unknown) {
  const letters = [...word];
  if (letters.length > LONGEST) return [unknown];
  const found = [];
  for (let start = 0; start < letters.length; ) {
    const before = start ? "##" : "";
    let after = letters.length;
    while (after > start && !ids.has(before + letters.slice(start, after).join(""))) after--;
    if (after === start) return [unknown];
    found.push(ids.get(before + letters.slice(start, after).join("")));
    start = after;
  }
  return found;
}

// How many ids of each text are read; the longer text is cut first.
function lengths([first, second = []], room) {
  const [one, other] = [first.length, second.length];
  const shorter = Math.min(one, other, Math.floor(room / 2));
  const longer = Math.min(Math.max(one, other), room - shorter);
  return one > other ? [longer, shorter] : [shorter, longer];
}

export async function open(tokenizer) {
  const words = (await (await fetch("vocab.txt")).text()).replace(/\n$/, "").split("\n");
  const ids = new Map(words.map((word, id) => [word, id]));
  const unknown = ids.get(tokenizer.unknown);
  const idsOf = (text) => {
    let clean = text;
    if (tokenizer.strip_accents) clean = clean.normalize("NFD").replace(/\p{Mn}/gu, "");
    if (tokenizer.lowercase) clean = clean.replaceAll("Σ", "σ").toLowerCase();
    return (clean.match(WORDS) ?? []).flatMap((word) => pieces(word, ids, unknown));
  };
  return async (texts) => {
    const clean = texts.map((text) => text.replace(CONTROLS, ""));
    if (!clean.join("").trim()) throw new Error("the text is empty.");
    const found = clean.map(idsOf);
    const most = lengths(found, tokenizer.size - 1 - found.length);
    const end = ids.get(tokenizer.end);
    const data = Int32Array.from([
      ids.get(tokenizer.start), ...found.flatMap((inner, i) => [...inner.slice(0, most[i]), end]),
    ]);
    return { type: "int32", data, dims: [1, data.length], preview: null };
  };
}
