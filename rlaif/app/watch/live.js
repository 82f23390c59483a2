(() => {
  const version = "RLAIF_VERSION", every = 1000, place = "rlaif-place";
  const details = () => [...document.querySelectorAll("details")];
  // A reload keeps the place on the page, and what was folded open.
  const kept = JSON.parse(sessionStorage.getItem(place) || "null");
  sessionStorage.removeItem(place);
  if (kept) {
    const open = new Set(kept.open);
    for (const one of details()) if (one.firstElementChild) one.open = open.has(one.firstElementChild.textContent);
    window.scrollTo(0, kept.y);
  }
  const bar = document.getElementById("rlaif-live");
  const look = async () => {
    try {
      const answer = await fetch("version", { cache: "no-store" });
      if (answer.ok && (await answer.text()) !== version) {
        const open = details().filter((one) => one.open && one.firstElementChild);
        sessionStorage.setItem(place, JSON.stringify({ y: window.scrollY, open: open.map((one) => one.firstElementChild.textContent) }));
        location.reload();
        return;
      }
      bar.hidden = !bar.textContent;
    } catch {
      bar.hidden = false;
      bar.textContent = "No longer live: the command that served this report has ended.";
      return;
    }
    setTimeout(look, every);
  };
  setTimeout(look, every);
})();
