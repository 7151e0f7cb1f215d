// Mouse, fingers and keys that move the camera.

const TURN = 0.006;  // radians a pixel
const KEY_TURN = (5 * Math.PI) / 180;
const DOUBLE_TAP_MS = 300;

export function listen(canvas, orbit, moved) {
  const pointers = new Map();
  let apart = 0, tapped = 0, travelled = 0;
  const distance = () => {
    const [a, b] = [...pointers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    travelled = pointers.size > 1 ? Infinity : 0;
    if (pointers.size === 2) apart = distance();
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    pointers.set(event.pointerId, now);
    travelled += Math.hypot(now.x - before.x, now.y - before.y);
    if (pointers.size === 1) {
      orbit.turn(TURN * (before.x - now.x), TURN * (before.y - now.y));
    } else if (pointers.size === 2) {
      const nowApart = distance();
      if (nowApart > 0 && apart > 0) orbit.zoom(apart / nowApart);
      apart = nowApart;
    }
    moved();
  });
  const up = (event) => {
    pointers.delete(event.pointerId);
    if (event.type !== "pointerup" || travelled > 12) return;
    if (event.timeStamp - tapped < DOUBLE_TAP_MS) {
      orbit.reset();
      moved();
    }
    tapped = event.timeStamp;
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    orbit.zoom(Math.exp(0.0015 * lines * event.deltaY));
    moved();
  }, { passive: false });
  const keys = {
    ArrowLeft: () => orbit.turn(-KEY_TURN, 0),
    ArrowRight: () => orbit.turn(KEY_TURN, 0),
    ArrowUp: () => orbit.turn(0, -KEY_TURN),
    ArrowDown: () => orbit.turn(0, KEY_TURN),
    "+": () => orbit.zoom(0.9),
    "=": () => orbit.zoom(0.9),
    "-": () => orbit.zoom(1 / 0.9),
    0: () => orbit.reset(),
  };
  canvas.addEventListener("keydown", (event) => {
    const move = keys[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move();
    moved();
  });
}
