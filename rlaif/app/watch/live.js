(() => {
  const bar = document.getElementById("rlaif-live"), told = bar.textContent;
  const version = bar.dataset.version, every = 1000, place = "rlaif-place";

  // Each fold by its words, and by how many of the same words come before it.
  function folds() {
    const seen = {};
    return [...document.querySelectorAll("details")].map((fold) => {
      const words = fold.querySelector("summary")?.textContent ?? "";
      seen[words] = (seen[words] ?? 0) + 1;
      return [`${words} ${seen[words]}`, fold];
    });
  }

  function keep() {
    const open = folds().filter(([, fold]) => fold.open).map(([words]) => words);
    sessionStorage.setItem(place, JSON.stringify({ y: window.scrollY, open }));
  }

  function restore({ y, open }) {
    for (const [words, fold] of folds()) fold.open = open.includes(words);
    window.scrollTo(0, y);
  }

  async function look() {
    try {
      const answer = await fetch("version", { cache: "no-store" });
      if (answer.ok && (await answer.text()) !== version) {
        keep();
        location.reload();
        return;
      }
      bar.textContent = told;
    } catch {
      bar.textContent = "No longer live: the command that serves this report does not answer.";
    }
    bar.hidden = !bar.textContent;
    setTimeout(look, every);
  }

  const kept = sessionStorage.getItem(place);
  sessionStorage.removeItem(place);
  if (kept) restore(JSON.parse(kept));
  setTimeout(look, every);
})();
