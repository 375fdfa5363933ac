"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 40rem)");
  // Okabe and Ito's colours, on dark ground lighter where they would sink into it.
  const themes = {
    light: {
      ink: "#1b1f24", soft: "#57606a", grid: "#e1e5ea", paper: "#ffffff", path: "#0072B2", straight: "#D55E00", limit: "#444444",
      series: ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#8a7f00"], depth: ["#440154", "#21918c", "#c9a800"],
    },
    dark: {
      ink: "#e8ebee", soft: "#a3adb8", grid: "#2f363e", paper: "#14171b", path: "#56B4E9", straight: "#FF8C42", limit: "#b8c0c8",
      series: ["#56B4E9", "#FF8C42", "#2fc79b", "#E69F00", "#8fb8ff", "#E39BC4", "#F0E442"], depth: ["#a58bd6", "#2fb5ae", "#fde725"],
    },
  };
  const mix = (stops, share) => {
    const place = share * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2), rest = place - low;
    const part = (k, at) => parseInt(stops[k].slice(at, at + 2), 16);
    return "rgb(" + [1, 3, 5].map((at) => Math.round(part(low, at) * (1 - rest) + part(low + 1, at) * rest)).join(",") + ")";
  };
  const colour = (name, theme) =>
    name.startsWith("series") ? theme.series[Number(name.slice(6))]
    : name.startsWith("depth") ? mix(theme.depth, Number(name.slice(5)))
    : theme[name];
  // Only where colours stand: a run may be called "@path".
  const places = new Set(["color"]);
  const filled = (value, theme, key) => {
    if (typeof value === "string") return places.has(key) && value.startsWith("@") ? colour(value.slice(1), theme) : value;
    if (Array.isArray(value)) return value.map((item) => (item !== null && typeof item === "object" ? filled(item, theme, key) : item));
    if (value !== null && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, filled(item, theme, name)]));
    return value;
  };
  const draw = () => {
    const theme = dark.matches ? themes.dark : themes.light;
    for (const [id, figure] of Object.entries(figures)) {
      const place = document.getElementById(id);
      if (!place) continue;
      const own = filled(figure.layout, theme);
      const axis = (given) => ({
        gridcolor: theme.grid, zeroline: false, linecolor: theme.soft, tickcolor: theme.soft, automargin: true, ...given,
        title: { ...given.title, font: { size: 13 }, standoff: 8 },
      });
      for (const name of Object.keys(own)) if (/^[xy]axis\d*$/.test(name)) own[name] = axis(own[name]);
      if (own.coloraxis && own.coloraxis.colorbar && narrow.matches) {
        Object.assign(own.coloraxis.colorbar, { orientation: "h", y: 1.02, yanchor: "bottom", x: 0.5, len: 0.9, title: { ...own.coloraxis.colorbar.title, side: "top" } });
        // Equal scales and a legend below: left to itself the axis' title ends up inside the plot.
        own.xaxis.automargin = false;
        own.margin = { l: 8, r: 8, t: 8, b: 100 };
      }
      const layout = {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: theme.ink, size: 12, family: "system-ui, sans-serif" },
        margin: { l: 8, r: 8, t: narrow.matches ? 8 : 30, b: 8 }, modebar: { bgcolor: "rgba(0,0,0,0)", color: theme.soft, activecolor: theme.ink }, hovermode: "closest", dragmode: narrow.matches ? false : "zoom",
        legend: { orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom", font: { size: 11 } },
        hoverlabel: { bgcolor: theme.paper, bordercolor: theme.soft, font: { color: theme.ink } }, ...own,
      };
      const config = { responsive: true, displaylogo: false, displayModeBar: narrow.matches ? false : "hover", modeBarButtons: [["toImage", "zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]] };
      Plotly.react(place, filled(figure.data, theme), layout, config);
    }
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  };
  draw();
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
})();
