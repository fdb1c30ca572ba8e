// Scrolls the studies of scroll.md. Each picture holds all slices, one below the other.
const study = document.getElementById("study");
const slider = study.querySelector("#slice");
const pictures = [...study.querySelectorAll("img")];
const names = { lung: "lung", mediastinum: "soft-tissue" };
const chosen = (name) => study.querySelector(`input[name=${name}]:checked`).value;

function show() {
  const slice = Number(slider.value);
  const window = chosen("window");
  const who = chosen("who");
  study.querySelector("output").value = slice;
  slider.setAttribute("aria-valuetext", `slice ${slice} of ${slider.max}`);
  for (const picture of pictures) {
    const source = `studies/${picture.dataset.who}_${window}.jpg`;
    if (picture.getAttribute("src") !== source) picture.src = source;
    picture.style.transform = `translateY(${(-100 * (slice - 1)) / slider.max}%)`;
    picture.alt =
      `Axial slice ${slice} of ${slider.max} of the ${picture.dataset.who} ` +
      `synthetic chest, ${names[window]} window`;
    picture.closest("figure").hidden = who !== "both" && who !== picture.dataset.who;
  }
}

// left and right work wherever nothing else on the page wants them
document.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step || event.target !== document.body || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  slider.value = Number(slider.value) + step;
  show();
});
study.addEventListener("input", show);
for (const picture of pictures) for (const window in names) {
  new Image().src = `studies/${picture.dataset.who}_${window}.jpg`;
}
show();
