(() => {
  "use strict";
  const find = (id) => document.getElementById(id);
  const demo = find("demo"), play = find("play"), slider = find("frame"), where = find("where");
  const speed = find("speed"), view = find("view"), differ = find("differ"), pairs = find("pairs"), pick = [find("left"), find("right")];
  const shown = [...demo.querySelectorAll(".chooser input")];
  const { frames, pause, lastPause } = Object.fromEntries(Object.entries(demo.dataset).map(([name, value]) => [name, Number(value)]));
  let frame = 0, timer = 0;

  demo.classList.add("scripted");
  demo.querySelectorAll("[hidden]").forEach((part) => { part.hidden = false; });

  // One number for all clips: they cannot be on different frames.
  const show = (next) => {
    frame = (next + frames) % frames;
    demo.style.setProperty("--frame", frame);
    slider.value = frame;
    where.value = `${frame + 1} / ${frames}`;
  };
  const wait = () => {
    clearTimeout(timer);
    if (!play.checked) return;
    const still = frame === frames - 1 ? lastPause : pause;
    timer = setTimeout(() => { show(frame + 1); wait(); }, still / Number(speed.value));
  };
  const hold = (next) => { play.checked = false; wait(); show(next); };

  play.addEventListener("change", wait);
  speed.addEventListener("change", wait);
  slider.addEventListener("input", () => hold(Number(slider.value)));

  // Swiping: the right clip lies over the left one, cut where the pointer is, in all pairs alike.
  const films = [...demo.querySelectorAll(".clip-rows > .row:not(.heads)")].map((row) => [...row.children]);
  const prompts = [...demo.querySelectorAll(".clip-rows > .prompt")].map((prompt) => prompt.textContent);
  const part = (tag, name, text = "") => {
    const made = document.createElement(tag);
    made.className = name;
    made.textContent = text;
    return made;
  };
  const compare = () => {
    const two = pick.map((choice) => Number(choice.value));
    pairs.replaceChildren(...films.map((row, index) => {
      const whole = part("div", "whole"), pair = part("div", "pair");
      pair.append(...two.map((column) => row[column].cloneNode()));
      const name = (choice) => choice.selectedOptions[0].textContent;
      pair.append(part("div", "edge"), part("div", "tag left", name(pick[0])), part("div", "tag right", name(pick[1])));
      whole.append(pair, part("p", "prompt", prompts[index]));
      return whole;
    }));
  };
  const swipe = (event) => {
    const pair = event.target.closest(".pair");
    if (!pair) return;
    const box = pair.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    demo.style.setProperty("--split", `${100 * share}%`);
  };
  pairs.addEventListener("pointermove", swipe);
  pairs.addEventListener("pointerdown", swipe);
  pick.forEach((choice) => choice.addEventListener("change", compare));
  view.addEventListener("change", () => {
    demo.classList.toggle("swiping", view.checked);
    find("picks").hidden = !view.checked;
    if (view.checked) compare();
  });
  find("picks").hidden = true;

  // Each clip over the reference's, blended by their difference, frame by frame.
  const reference = shown.findIndex((box) => box.dataset.role === "reference");
  const alone = films.map((row) => row.map((film) => film.style.backgroundImage));
  differ.addEventListener("change", () => {
    demo.classList.toggle("differing", differ.checked);
    films.forEach((row, index) => row.forEach((film, column) => {
      const compared = differ.checked && column !== reference;
      film.classList.toggle("compared", compared);
      film.style.backgroundImage = alone[index][column] + (compared ? `, ${alone[index][reference]}` : "");
    }));
    if (view.checked) compare();
  });

  // What is not there is said in words, and comes back with one press.
  const missing = find("missing"), all = part("button", "", "Show all");
  all.type = "button";
  const tell = () => {
    const names = shown.filter((box) => !box.checked).map((box) => box.parentElement.textContent);
    missing.hidden = names.length === 0;
    missing.replaceChildren(`Not shown: ${names.join(", ")}. Choose columns at the bottom of the screen, or `, all);
  };
  all.addEventListener("click", () => {
    shown.forEach((box) => { box.checked = true; });
    tell();
  });
  // The last column stays.
  shown.forEach((box) => box.addEventListener("change", () => {
    if (!shown.some((other) => other.checked)) box.checked = true;
    tell();
  }));
  if (matchMedia("(max-width: 620px)").matches) {
    shown.forEach((box) => { box.checked = ["reference", "direct", "transfer"].includes(box.dataset.role); });
  }
  tell();

  const keys = {
    " ": () => { play.checked = !play.checked; wait(); },
    ArrowLeft: () => hold(frame - 1),
    ArrowRight: () => hold(frame + 1),
    s: () => { view.click(); },
    d: () => { differ.click(); },
  };
  // A control keeps the keys that it has a use for itself.
  const taken = (target, key) => target.closest("select, summary, a")
    || (target.type === "checkbox" && key === " ") || (target.type === "range" && key.startsWith("Arrow"));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || taken(event.target, event.key)) return;
    const column = shown[Number(event.key) - 1];
    if (column) column.click();
    else if (keys[event.key]) keys[event.key]();
    else return;
    event.preventDefault();
  });
  // After a click with the pointer (a key's click has no detail) the space bar plays and pauses again.
  demo.querySelectorAll("input[type=checkbox]").forEach((box) => box.addEventListener("click", (event) => {
    if (event.detail > 0) box.blur();
  }));

  if (matchMedia("(prefers-reduced-motion: reduce)").matches) play.checked = false;
  show(0);
  wait();
})();
