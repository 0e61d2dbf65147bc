/* A button beside "View as Markdown" that copies the page for a coding agent. */
(() => {
  "use strict";

  const offer = () => {
    const link = document.querySelector(".as-markdown a");
    if (!link || link.nextElementSibling || !navigator.clipboard) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy page as Markdown";
    button.addEventListener("click", () => copy(link, button));
    link.after(" ", button);
  };

  const copy = async (link, button) => {
    let said = "Copied";
    try {
      const response = await fetch(link.href);
      if (!response.ok) throw new Error(response.status);
      await navigator.clipboard.writeText(await response.text());
    } catch {
      said = "Not copied: open the link";
    }
    button.textContent = said;
  };

  // With instant navigation the theme announces each page here.
  if (window.document$) window.document$.subscribe(offer);
  else document.addEventListener("DOMContentLoaded", offer);
})();
