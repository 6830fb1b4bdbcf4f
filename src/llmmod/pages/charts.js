// Under the pointer: the values of a chart's lines at the nearest point, of many lines the nearest one's.
for (const plot of document.querySelectorAll(".lines .plot")) {
  const svg = plot.querySelector("svg"), [from, to] = plot.dataset.x.split(" ").map(Number);
  const here = svg.querySelector(".here");
  const lines = [...svg.querySelectorAll("polyline")].map((line) => ({
    name: line.dataset.name, points: JSON.parse(line.dataset.points), drawn: line.getAttribute("points").split(" ").map((p) => p.split(",").map(Number)),
  }));
  const hide = () => { hint.style.visibility = "hidden"; here.style.display = "none"; };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect(), x = (event.clientX - box.left) / box.width, y = 100 * (event.clientY - box.top) / box.height;
    const wanted = from + x * (to - from);
    let near = lines.filter((line) => line.points.length).map((line) => {
      let low = 0, high = line.points.length - 1;
      while (high - low > 1) { const middle = (low + high) >> 1; if (line.points[middle][0] < wanted) low = middle; else high = middle; }
      const place = wanted - line.points[low][0] < line.points[high][0] - wanted ? low : high;
      return {name: line.name, step: line.points[place][0], value: line.points[place][1], far: Math.abs(line.drawn[place][1] - y), left: line.drawn[place][0]};
    });
    if (x < -0.02 || x > 1.02 || !near.length) { hide(); return; }
    const first = near.reduce((a, b) => Math.abs(a.step - wanted) < Math.abs(b.step - wanted) ? a : b);
    if (near.length > 12) near = [near.reduce((a, b) => (a.far < b.far ? a : b))];
    hint.textContent = near.map((each) => `${each.name} ${Number(each.value.toPrecision(6))} at ${each.step}`).join(" · ");
    here.setAttribute("x1", first.left); here.setAttribute("x2", first.left); here.style.display = "";
    hint.style.left = Math.max(6, Math.min(event.clientX + 12, innerWidth - hint.offsetWidth - 6)) + "px";
    hint.style.top = Math.max(6, box.top - hint.offsetHeight - 6) + "px";
    hint.style.visibility = "visible";
  });
  plot.addEventListener("pointerleave", hide);
}
