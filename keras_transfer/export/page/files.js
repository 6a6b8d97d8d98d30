// Lets the user choose, drop or paste a file.
export function drawFiles(form, ask, element, { prompt, accept, buttons }) {
  const row = element("div", "", { class: "buttons" });
  for (const [text, attributes] of Object.entries(buttons)) {
    const label = element("label", text, { class: "file" });
    const chooser = element("input", "", { type: "file", accept, ...attributes });
    chooser.addEventListener("change", () => {
      if (chooser.files.length) ask(chooser.files[0]);
      chooser.value = ""; // the same file may be chosen again
    });
    label.append(chooser);
    row.append(label);
  }
  form.append(element("p", prompt), row);

  const take = (items, event) => {
    if (!items?.files.length) return;
    event.preventDefault();
    ask(items.files[0]);
  };
  document.addEventListener("paste", (event) => take(event.clipboardData, event));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    form.classList.add("over");
  });
  document.addEventListener("dragleave", () => form.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    take(event.dataTransfer, event);
  });
  return row;
}
