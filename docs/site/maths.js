// Without an OpenType font for mathematics, browsers leave subscripts on the line: then style.css moves them.
document.addEventListener("DOMContentLoaded", () => {
  const probe = document.createElement("div");
  probe.innerHTML = "<math><msub><mi>u</mi><mi>t</mi></msub></math>";
  document.body.append(probe);
  const [base, sub] = probe.querySelectorAll("mi");
  const shift = sub.getBoundingClientRect().bottom - base.getBoundingClientRect().bottom;
  if (shift < 0.1 * parseFloat(getComputedStyle(probe).fontSize)) document.documentElement.classList.add("no-math-font");
  probe.remove();
});
