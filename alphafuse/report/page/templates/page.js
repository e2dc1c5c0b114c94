"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  document.querySelector(".theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
  });

  // mark the section that is at the top of the screen
  const links = new Map([...document.querySelectorAll(".contents a")].map((one) => [one.hash.slice(1), one]));
  const sections = [...links.keys()].map((id) => document.getElementById(id));
  let waiting = 0;
  const mark = () => {
    waiting = 0;
    const atEnd = scrollY + innerHeight >= root.scrollHeight - 2;
    const above = sections.filter((one) => one.getBoundingClientRect().top < innerHeight / 3);
    const current = atEnd ? sections.at(-1) : above.at(-1) ?? sections[0];
    links.forEach((link, id) => {
      if (id === current.id) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    });
  };
  addEventListener("scroll", () => { waiting ||= requestAnimationFrame(mark); }, { passive: true });
  addEventListener("load", mark);

  // a figure or table wider than the screen can be scrolled with the keyboard
  const wide = () => document.querySelectorAll(".scroll").forEach((one) => {
    if (one.scrollWidth > one.clientWidth + 1) one.tabIndex = 0; else one.removeAttribute("tabindex");
  });
  addEventListener("resize", wide);
  addEventListener("load", wide);
})();
