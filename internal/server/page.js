"use strict";
// A proxy may not say under which path it has put the cache; the browser knows.
const here = location.origin + location.pathname.replace(/\/+$/, "");
if (/^https?:/.test(here)) for (const e of document.querySelectorAll(".url")) e.textContent = here;

for (const button of document.querySelectorAll("button[data-copies]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(document.getElementById(button.dataset.copies));
    // Not navigator.clipboard, which browsers have over https only, and most caches are not.
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
