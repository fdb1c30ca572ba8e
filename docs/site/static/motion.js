// Plays and pauses the GIFs of the front page: each has a still beside it.
const pictures = [...document.querySelectorAll(".motion")];
const button = document.getElementById("motion");
const stills = pictures.map((picture) => picture.querySelector("source"));
let plays = !matchMedia(stills[0].media).matches;

function show() {
  for (const still of stills) still.media = plays ? "not all" : "all";
  button.textContent = plays ? "Pause the pictures" : "Play the pictures";
}

button.addEventListener("click", () => {
  plays = !plays;
  show();
});
button.hidden = false;
show();
