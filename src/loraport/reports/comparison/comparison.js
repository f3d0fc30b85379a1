"use strict";
(() => {
  const one = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const about = JSON.parse(one("about").textContent);
  const names = about.columns, reference = names.indexOf(about.reference), key = "loraport-" + about.key;
  const comparison = one("comparison"), entries = all(".entry"), videos = all("video");
  one("player").hidden = false;

  // ---- playback: one clock; each film is told where it should be ------------------------------------------------
  const length = (video) => video.dataset.frames / video.dataset.fps;
  const loop = Math.max(0, ...videos.map(length));
  const fps = Math.max(1, ...videos.map((video) => +video.dataset.fps));
  const frames = Math.max(1, Math.round(loop * fps));
  const near = new Set();
  let playing = videos.length > 0 && !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let clock = 0, before = null, speed = 1;

  // the middle of a frame, so that rounding cannot show its neighbour
  const middle = (video, at) => {
    const rate = +video.dataset.fps;
    return (Math.min(Math.floor(at * rate + 1e-6), video.dataset.frames - 1) + 0.5) / rate;
  };
  const show = (video) => {
    if (video.readyState < 1) return;
    const over = clock >= length(video) - 0.5 / video.dataset.fps;  // a shorter film waits on its last frame
    if (playing && !over) {
      video.playbackRate = speed;
      if (Math.abs(video.currentTime - clock) > 0.12 * Math.max(1, speed)) video.currentTime = clock;
      if (video.paused) video.play().catch(() => {});
    } else {
      if (!video.paused) video.pause();
      const at = middle(video, clock);
      if (Math.abs(video.currentTime - at) > 0.25 / video.dataset.fps) video.currentTime = at;
    }
  };
  const tell = () => {
    if (!videos.length) return;
    const now = Math.min(frames - 1, Math.floor(clock * fps + 1e-6));
    one("frame").value = now;
    one("where").textContent = `${now + 1} / ${frames}`;
    one("play").textContent = playing ? "❚❚" : "▶";
  };
  const tick = (now) => {
    if (playing && before !== null) clock = (clock + Math.min(0.25, (now - before) / 1000) * speed) % loop;
    before = now;
    near.forEach(show);
    tell();
    requestAnimationFrame(tick);
  };
  const toFrame = (number) => { playing = false; clock = (((number % frames) + frames) % frames) / fps; };
  const step = (by) => toFrame(Math.floor(clock * fps + 1e-6) + by);
  if (videos.length) {
    // A film is fetched whole where the page comes from a server: plain ones cannot serve a part, and without that
    // a browser cannot seek. From a folder it can.
    const whole = (video) => {
      if (video.dataset.whole || location.protocol === "file:") return;
      video.dataset.whole = "yes";
      fetch(video.src).then((answer) => answer.ok ? answer.blob() : Promise.reject(new Error(answer.statusText)))
        .then((film) => video.setAttribute("src", URL.createObjectURL(film)))
        .catch(() => {});  // it keeps its address, and plays as well as the server lets it
    };
    const watch = new IntersectionObserver((seen) => seen.forEach(({ target, isIntersecting }) => {
      if (isIntersecting) { near.add(target); whole(target); } else { near.delete(target); target.pause(); }
    }), { rootMargin: "200px" });
    videos.forEach((video) => { video.controls = false; video.loop = false; watch.observe(video); });
    one("frame").max = frames - 1;
    one("frame").oninput = () => toFrame(+one("frame").value);
    one("play").onclick = () => { playing = !playing; };
    one("back").onclick = () => step(-1);
    one("forward").onclick = () => step(1);
    one("speed").onchange = () => { speed = +one("speed").value; };
    requestAnimationFrame(tick);
  }

  // ---- columns, size, swipe --------------------------------------------------------------------------------------
  const chips = all("#chooser input");
  const voters = names.map((_, index) => index).filter((index) => about.candidates.includes(index));
  const arrange = () => {
    const blind = one("blind").checked, swiping = one("swipe").checked && !blind;
    const picked = [+one("left").value, +one("right").value];
    let shown = 0;
    names.forEach((_, index) => {
      const here = blind ? index === reference || voters.includes(index) : chips[index].checked;
      shown += here;
      all(`.cell[data-column="${index}"]`).forEach((cell) => {
        cell.classList.toggle("gone", !here && !swiping);
        cell.classList.toggle("left", swiping && index === picked[0]);
        cell.classList.toggle("right", swiping && index === picked[1] && index !== picked[0]);
      });
    });
    comparison.classList.toggle("swiping", swiping);
    comparison.classList.toggle("blind", blind);
    comparison.style.setProperty("--shown", Math.max(1, shown));
    one("chooser").hidden = swiping || blind;
    one("picks").hidden = !swiping;
    one("swipe").disabled = blind;
    one("votes").hidden = !blind && !count().total;
    entries.forEach(letter);
    standing();
  };
  chips.forEach((chip) => { chip.onchange = arrange; });
  one("size").onchange = () => comparison.style.setProperty("--size", one("size").value);
  one("left").value = Math.max(0, names.indexOf("direct"));
  one("right").value = voters.find((index) => names[index] !== "direct") ?? names.length - 1;
  for (const id of ["left", "right", "swipe", "blind"]) one(id).onchange = arrange;
  all(".row").forEach((row) => {
    row.addEventListener("pointermove", (event) => {
      if (!comparison.classList.contains("swiping")) return;
      const box = row.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      comparison.style.setProperty("--split", `${(100 * share).toFixed(2)}%`);
    });
  });

  // ---- votes with the names hidden -------------------------------------------------------------------------------
  const kept = (() => { try { return JSON.parse(localStorage.getItem(key)) || {}; } catch { return {}; } })();
  const votes = kept.votes || {};
  const orders = kept.orders || {};
  const keep = () => { try { localStorage.setItem(key, JSON.stringify({ votes, orders })); } catch { /* a browser that keeps nothing */ } };
  const order = (row) => {  // Fisher and Yates, with the browser's own random numbers; drawn once for a row
    if (!orders[row]) {
      const drawn = [...voters];
      for (let last = drawn.length - 1; last > 0; last--) {
        const other = crypto.getRandomValues(new Uint32Array(1))[0] % (last + 1);
        [drawn[last], drawn[other]] = [drawn[other], drawn[last]];
      }
      orders[row] = drawn;
    }
    return orders[row];
  };
  function letter(entry) {
    const blind = one("blind").checked, row = entry.dataset.row, drawn = blind ? order(row) : [];
    all(".cell", entry).forEach((cell) => {
      const index = +cell.dataset.column, place = drawn.indexOf(index), made = !cell.querySelector(".absent");
      cell.style.order = !blind ? "" : index === reference ? 0 : place + 1;
      cell.classList.toggle("named", blind && index === reference);
      cell.querySelector(".letter").textContent = place < 0 ? "" : "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[place % 26];
      const button = cell.querySelector(".vote");
      button.hidden = place < 0 || !made;
      button.setAttribute("aria-pressed", votes[row] === names[index]);
      button.onclick = () => vote(entry, names[index]);
    });
    const same = entry.querySelector(".same");
    same.hidden = !blind;
    same.style.order = 99;
    same.setAttribute("aria-pressed", votes[row] === "");
    same.onclick = () => vote(entry, "");
  }
  function vote(entry, name) {
    const row = entry.dataset.row;
    if (votes[row] === name) delete votes[row]; else votes[row] = name;
    keep();
    letter(entry);
    standing();
  }
  function count() {
    const rows = entries.map((entry) => entry.dataset.row).filter((row) => row in votes);
    const chosen = rows.map((row) => votes[row]).filter((name) => name !== "");
    return { total: rows.length, chosen: chosen.length, same: rows.length - chosen.length,
      by: voters.map((index) => [names[index], chosen.filter((name) => name === names[index]).length]) };
  }
  const wilson = (hits, of) => {  // Wilson's interval of a share
    const z = 1.96, share = hits / of, middle = (share + z * z / (2 * of)) / (1 + z * z / of);
    const reach = z * Math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of);
    return [Math.max(0, middle - reach), Math.min(1, middle + reach)].map((end) => Math.round(100 * end));
  };
  function standing() {
    const found = count(), blind = one("blind").checked;
    one("standing").textContent = `${found.total} of ${entries.length} rows voted on` +
      (found.same ? `, no difference in ${found.same}` : "") + "." +
      (blind ? " Names and counts show when “hide names and vote” is off." :
        voters.length > 1 ? ` By chance each column would be best in ${Math.round(100 / voters.length)} % of the votes.` : "");
    one("tally-scroll").hidden = blind || !found.chosen;
    one("tally").replaceChildren(...found.by.map(([name, hits]) => {
      const line = document.createElement("tr"), [low, high] = wilson(hits, found.chosen || 1);
      for (const text of [name, `${hits} of ${found.chosen}`, `${Math.round(100 * hits / (found.chosen || 1))} [${low}, ${high}] %`])
        line.append(Object.assign(document.createElement("td"), { textContent: text }));
      return line;
    }));
  }
  const save = (file, type, text) => {
    const link = Object.assign(document.createElement("a"), { download: file, href: URL.createObjectURL(new Blob([text], { type })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const rows = () => entries.map((entry) => entry.dataset.row).filter((row) => row in votes);
  const quoted = (text) => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const asCsv = () => ["row,best,shown_in_order", ...rows().map((row) =>
    [row, votes[row] || "no difference", (orders[row] || []).map((index) => names[index]).join(" ")].map(quoted).join(","))].join("\n") + "\n";
  const asJson = () => JSON.stringify({ comparison: about.key, columns: voters.map((index) => names[index]),
    votes: rows().map((row) => ({ row, best: votes[row] || null, order: (orders[row] || []).map((index) => names[index]) })) }, null, 1) + "\n";
  one("save-csv").onclick = () => save("votes.csv", "text/csv", asCsv());
  one("save-json").onclick = () => save("votes.json", "application/json", asJson());
  one("forget").onclick = () => {
    for (const memory of [votes, orders]) for (const row of Object.keys(memory)) delete memory[row];
    keep();
    arrange();
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const press = { s: "swipe", b: "blind" }[event.key.toLowerCase()];
    if (press && !one(press).disabled) { one(press).checked = !one(press).checked; arrange(); }
    else if (/^[1-9]$/.test(event.key) && chips[event.key - 1] && !one("chooser").hidden) {
      chips[event.key - 1].checked = !chips[event.key - 1].checked;
      arrange();
    } else if (videos.length && event.key === " " && event.target.tagName !== "BUTTON") { playing = !playing; event.preventDefault(); }
    else if (videos.length && event.key === "ArrowLeft") { step(-1); event.preventDefault(); }
    else if (videos.length && event.key === "ArrowRight") { step(1); event.preventDefault(); }
  });
  arrange();
})();
