// Plays the videos of one place as one: the first is heard and leads, the others follow it.
const videos = () => [...element.querySelectorAll("video")];
const part = name => element.querySelector(`[data-part=${name}]`);
function label() {
  const all = videos(), word = all.some(video => !video.paused) ? "Pause" : "Play";
  if (part("play")) part("play").textContent = all.length > 1 ? `${word} both` : word;
}
function toggle() {
  const all = videos(), [first, ...others] = all;
  if (!first) return;
  if (all.some(video => !video.paused)) { for (const video of all) video.pause(); return; }
  if (first.ended) first.currentTime = 0;
  for (const other of others) other.currentTime = Math.min(first.currentTime, other.duration || 0);
  for (const video of all) video.play().catch(() => {});
}
element.addEventListener("click", event => { if (event.target.closest("[data-part=play]")) toggle(); });
element.addEventListener("input", event => {
  const [first, ...others] = videos();
  if (!first) return;
  if (event.target === part("place") && first.duration) {
    for (const video of [first, ...others]) video.currentTime = event.target.value * first.duration;
  }
  if (event.target === part("heard")) videos().forEach((video, index) => { video.muted = String(index) !== event.target.value; });
});
for (const name of ["play", "pause", "ended"]) element.addEventListener(name, label, true);  // these do not bubble
function follow() {
  if (!element.isConnected) return;
  const [first, ...others] = videos();
  if (first && first.duration) {
    if (!first.paused) for (const other of others) {
      if (!other.ended && !other.seeking && Math.abs(other.currentTime - first.currentTime) > 0.08) other.currentTime = first.currentTime;
    }
    if (part("place") && document.activeElement !== part("place")) part("place").value = first.currentTime / first.duration;
  }
  requestAnimationFrame(follow);
}
follow();
