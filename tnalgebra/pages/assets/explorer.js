
// The explorer: one layer and one rank, which all data sets show.

const [layerView, optionView, spectrumView] = views;
const layerNames = layerView.byName.layer.values;
const grid = [...new Set(optionView.byName.rank.values)].sort((a, b) => a - b);

const layerMenu = make("select", {}, ...layerNames.map((name) => make("option", { textContent: name })));
const rankSlider = make("input", { type: "range", min: 0, max: grid.length - 1, step: 1 });
const rankText = make("output");
const layerText = make("p");
layerText.setAttribute("aria-live", "polite");
const chooser = make("section", { className: "chooser" },
  make("label", {}, "layer", layerMenu), make("label", {}, make("span", {}, "rank ", rankText), rankSlider), layerText);
chooser.setAttribute("aria-label", "Choose a layer and a rank");
layerView.element.after(chooser);

// of each rewrite of the layer, the row of the largest rank up to the chosen one
const rowsAt = (view, series, layer, rank) => {
  const best = new Map();
  view.byName.layer.values.forEach((name, row) => {
    const [value, key] = [view.byName.rank.values[row], view.byName[series].values[row]];
    if (name !== layer || value > rank) return;
    if (!best.has(key) || value > view.byName.rank.values[best.get(key)]) best.set(key, row);
  });
  return new Set(best.values());
};

const chooseLayerAndRank = () => {
  const [layer, rank] = [layerNames[layerMenu.selectedIndex], grid[rankSlider.value]];
  rankText.textContent = rank;
  rankSlider.setAttribute("aria-valuetext", `rank ${rank}`);
  const row = layerMenu.selectedIndex;
  layerText.textContent = layerView.table_columns.map((column) =>
    layerView.numeric.get(column) ? `${show(column, row)} ${column.name}` : show(column, row)).join(", ");
  optionView.choose("layer", layer, rowsAt(optionView, "rewrite", layer, rank));
  spectrumView.choose("layer", layer, rowsAt(spectrumView, "cut", layer, rank));
};

for (const view of [optionView, spectrumView]) {
  for (const menu of view.menus) if (menu.column.name === "layer") menu.select.parentElement.hidden = true;
}
layerView.onchoose = (row) => { layerMenu.selectedIndex = row; chooseLayerAndRank(); };
layerMenu.addEventListener("change", chooseLayerAndRank);
rankSlider.addEventListener("input", chooseLayerAndRank);
const sizes = layerView.byName.parameters.values;
layerMenu.selectedIndex = sizes.indexOf(Math.max(...sizes));
rankSlider.value = Math.max(0, grid.indexOf(8));
chooseLayerAndRank();
