
const form = document.querySelector(".filter");
if (form) {
  const cases = [...document.querySelectorAll(".case")], status = form.querySelector("[role=status]");
  const search = form.elements.text;
  const show = () => {
    const kinds = new Set([...form.querySelectorAll("[name=problem]:checked")].map(box => box.value));
    const name = form.elements.class.value, wanted = search.value.trim().toLowerCase();
    let count = 0;
    for (const one of cases) {
      one.hidden = !(kinds.has(one.dataset.problem)
        && (!name || one.dataset.classes.split(" ").includes(name))
        && (!wanted || one.textContent.toLowerCase().includes(wanted)));
      count += !one.hidden;
    }
    status.textContent = `${count} of ${cases.length} problems`;
  };
  const go = step => {
    const visible = cases.filter(one => !one.hidden), at = visible.indexOf(document.activeElement.closest(".case"));
    const next = visible[at < 0 ? (step > 0 ? 0 : visible.length - 1) : at + step];
    if (next) { next.focus({ preventScroll: true }); next.scrollIntoView({ block: "center" }); }
  };
  const keys = {
    j: () => go(1), k: () => go(-1), "/": () => search.focus(),
    p: () => {
      const sound = document.activeElement.closest(".case")?.querySelector("audio");
      if (sound) { sound.paused ? sound.play() : sound.pause(); }
    },
  };
  document.addEventListener("keydown", event => {
    if (event.target.matches("select, [type=search]") || event.ctrlKey || event.metaKey || event.altKey) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const act = keys[event.key.toLowerCase()];
    if (act) { event.preventDefault(); act(); }
  });
  form.addEventListener("input", show);
  form.addEventListener("submit", event => event.preventDefault());
  show();
}
